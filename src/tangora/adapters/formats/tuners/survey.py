"""Describe a PEFT directory of any kind, from its configuration and its header: nothing is computed without a base."""

from __future__ import annotations

from pathlib import Path

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.contract import Site, Survey
from tangora.adapters.formats.lora.reading import weights_path
from tangora.adapters.formats.tuners.files import config_of, lora_config, sort_tensors
from tangora.adapters.formats.tuners.known import article
from tangora.adapters.formats.tuners.reading import base_of
from tangora.adapters.metadata import Metadata
from tangora.storage.header import read_header

__all__ = ["survey"]


def survey(folder: Path, about: Metadata | None) -> Survey:
    """Describe an adapter by the names of its tensors; only its base has the shapes of its sites.

    Raises:
        FileError: a file is missing or damaged.
        AdapterError: the kind changes no weights, or the configuration does not account for a tensor.
    """
    config, tuner = config_of(folder)
    path = weights_path(folder)
    header = read_header(path)
    tensors = sort_tensors(header, config, tuner, path)
    adapter = Adapter({}, about or base_of(config), LoraDetails(lora_config(config, [], False), tuner=tuner.title))
    sites = [Site(site, "layer", [], None, None, None) for site in tensors.sites(tuner)]
    whole = sorted({*tensors.whole, *tensors.biases})
    needs = f"{tuner.title} is computed by peft's own layers, on those of the base"
    return Survey(adapter, header, sites, whole, needs_base=needs, title=f"{article(tuner.title)} adapter")
