"""Describe an adapter that has been read, for formats that need no survey of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.adapters.contract import Site, Survey
from tangora.adapters.formats.lora.layers import expert_of, is_bias
from tangora.storage.header import Stored, read_header

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.updates.task_vector import Update

__all__ = ["surveyed"]


def surveyed(adapter: Adapter, files: Iterable[Path]) -> Survey:
    """Describe an adapter that has been read.

    Args:
        adapter: as its format returns it, read lazily if possible.
        files: the safetensors files that hold it.
    """
    tensors: dict[str, Stored] = {}
    for file in files:
        tensors |= read_header(file)
    sites = [_site(adapter, name, update) for name, update in sorted(adapter.updates.items())]
    shapes = {name: update.to("meta") for name, update in adapter.updates.items()}
    return Survey(replace(adapter, updates=shapes), tensors, sites, sorted(adapter.whole))


def _site(adapter: Adapter, name: str, update: Update) -> Site:
    factors = update.factors()
    rank, scaling = (None, None) if factors is None else (factors.rank, factors.scaling)
    return Site(name, _kind(adapter, name, update), list(update.shape), rank, scaling, update.norm())


def _kind(adapter: Adapter, name: str, update: Update) -> str:
    if adapter.metadata.of_kind.by_parameter:
        return "parameter"
    if is_bias(name, update):
        return "bias"
    if expert_of(name):
        return "expert"
    if name in adapter.embeddings:
        return "embedding"
    return "convolution" if name in adapter.kernels else "linear"
