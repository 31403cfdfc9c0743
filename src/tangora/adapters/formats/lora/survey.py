"""Describe a PEFT LoRA directory: one layer's factors at a time are read, for their norm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.contract import Site, Survey
from tangora.adapters.formats.lora.layers import expert_of, is_bias, kernel_of, updates_of
from tangora.adapters.formats.lora.names import sort_tensors
from tangora.adapters.formats.lora.reading import CONFIG, WEIGHTS, refuse_pickle
from tangora.adapters.formats.lora.settings import check_config
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.adapters.start import INITIAL
from tangora.errors import AdapterError
from tangora.storage.header import FLOATS, Stored, read_header
from tangora.storage.tensors import finite, read_rows
from tangora.support.files import inside, read_json
from tangora.updates.task_vector import Update

__all__ = ["needs_base", "survey"]


def survey(folder: Path, about: Metadata | None) -> Survey:
    """Describe an adapter, even if its updates depend on the base's weights.

    Raises:
        FileError: a file is missing or damaged.
        AdapterError: it is no change of the base's weights.
    """
    refuse_pickle(folder)
    config = read_json(inside(folder, CONFIG))
    check_config(config, folder / CONFIG, with_base=True)
    path = inside(folder, WEIGHTS)
    tensors = read_header(path)
    named = sort_tensors(tensors, config, path)
    needed = needs_base(config, folder)
    sites: list[Site] = []
    shapes: dict[str, Update] = {}
    kernels: dict[str, tuple[int, ...]] = {}
    for (site, kind), stored in sorted(named.factors.items()):
        pair = {part: _read(one, path) for part, one in stored.items()}
        for name, update in updates_of(site, kind, pair, config, path).items():
            norm = None if needed and (config.get("use_dora") or not is_bias(name, update)) else update.norm()
            sites.append(_site(name, kind, update, pair, norm))
            shapes[name] = update.to("meta")
        if kernel := kernel_of(pair):
            kernels[site] = kernel
    base = BaseInfo(model=config.get("base_model_name_or_path"), revision=config.get("revision"))
    embeddings = frozenset(site for site, kind in named.factors if kind == "lora_embedding")
    title = "a DoRA adapter" if config.get("use_dora") else None
    adapter = Adapter(shapes, about or Metadata(base=base), LoraDetails(config, None, embeddings, kernels))
    return Survey(adapter, tensors, sites, sorted(named.whole), (folder / INITIAL).exists(), needed, title)


def _read(stored: Stored, path: Path) -> torch.Tensor:
    if stored.dtype not in FLOATS:
        raise AdapterError("weights must be floating-point", got=stored.dtype, where=f"{stored.name} in {path}")
    rows = stored.shape[0] if stored.shape else 1
    return finite(stored.name, read_rows(stored, 0, rows).reshape(stored.shape), path)


def needs_base(config: Mapping[str, Any], folder: Path) -> str | None:
    """Return why updates follow from the base's weights; None if they do not, or if they cannot be read at all."""
    try:
        check_config(config, folder / CONFIG, with_base=True)
    except AdapterError:
        return None
    try:
        check_config(config, folder / CONFIG, with_base=False)
    except AdapterError as reason:
        return reason.what
    return None


def _site(name: str, kind: str, update: Update, pair: Mapping[str, torch.Tensor], norm: float | None) -> Site:
    layer = "bias" if is_bias(name, update) else "expert" if expert_of(name) else "linear"
    layer = "embedding" if kind == "lora_embedding" else layer
    shape = list(update.shape)
    if layer == "linear" and (kernel := kernel_of(pair)):
        layer, shape = "convolution", [shape[0], *kernel]
    factors = update.factors()
    rank, scaling = (None, None) if factors is None else (factors.rank, factors.scaling)
    return Site(name, layer, shape, rank, scaling, norm)
