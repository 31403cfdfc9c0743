"""Read a written adapter again and compare it with both checkpoints, entry by entry, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from tangora.adapters.adapter import Adapter
from tangora.adapters.formats.lora.names import PREFIX
from tangora.adapters.formats.lora.reading import WEIGHTS
from tangora.errors import AdapterError
from tangora.extraction.chosen import Site
from tangora.extraction.deltas import residual, value_of
from tangora.extraction.pairs import Pair
from tangora.fusion.sources import SourceAdapter
from tangora.updates.update import LowRank

__all__ = ["check_written"]

# The same numbers are summed in another shape, in float64: far above its rounding, far below any stated error.
_TOLERANCE = 1e-7
_FIX = "report it, with both checkpoints' config.json; --no-verify writes it all the same"


def check_written(
    adapter: Adapter, folder: Path, sites: Sequence[Site], whole: Mapping[str, Pair], dtype: torch.dtype
) -> None:
    """Compare an adapter's files with the change that they are to hold.

    Args:
        adapter: the adapter that was written.
        folder: its files.
        sites: with the stated errors.
        whole: parameter -> its pair, of layers that are saved whole.
        dtype: of the file.

    Raises:
        AdapterError: a site has another error than the stated one, or a value is not the tuned model's.
    """
    source = SourceAdapter(adapter, folder)
    for site in sites:
        factors = source.factors(site.pair.layer)
        found = math.inf if factors is None else _error(site, *factors)
        if not abs(found - site.error) <= _TOLERANCE:
            what = f"the file has an error of {found:.3g}, and {site.error:.3g} is stated"
            raise AdapterError(what, where=site.pair.layer, fix=_FIX)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name, pair in whole.items():
            stem, _, leaf = name.rpartition(".")
            held = next((n for n in (name, f"{stem}.base_layer.{leaf}") if PREFIX + n in file.keys()), None)  # noqa: SIM118
            if held is None or not torch.equal(file.get_tensor(PREFIX + held), value_of(pair).to(dtype)):
                raise AdapterError("the file does not have the tuned model's value", where=name, fix=_FIX)


def _error(site: Site, b: torch.Tensor, a: torch.Tensor) -> float:
    return math.sqrt(residual(site.pair, LowRank(b, a)) / site.square)
