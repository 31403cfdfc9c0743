"""Verify a fused adapter in a format that stock peft does not load: read its files anew, and compare in float64.

The sites of the files are brought to those of the fusion first: a format may have one module where the parents have
several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.adapters.adapter import load
from tangora.adapters.comparison import Loaded, times
from tangora.adapters.initial import seed_of
from tangora.adapters.layouts.pieces import at_the_sites_of
from tangora.errors import AdapterError
from tangora.fusion.verification import Verification, verified

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.fusion.sources import SourceAdapter
    from tangora.updates.task_vector import Update

__all__ = ["verify_file"]


class _InFiles(Loaded):
    """An adapter's files as Tangora reads them anew."""

    reader = "tangora"

    def __init__(self, fused: Adapter, path: Path) -> None:
        read = load(path)
        models = read.details.file.models if read.details.file is not None else ()
        self.updates = at_the_sites_of(fused.updates, read.updates, models[0]) if models else dict(read.updates)
        self.seed = seed_of("verify", str(len(fused.updates)))
        if odd := sorted(self.updates.keys() - fused.updates.keys()):
            raise AdapterError("the file has an update too many", got=odd[0], where=path, fix="report it")

    def dense(self, site: str) -> Tensor:
        """Return the update of a site, in float64."""
        return self._update(site).to(torch.float64).dense().double()

    def times(self, site: str, x: Tensor) -> Tensor:
        """Return the product of an update and vectors, in float64."""
        return times(self._update(site), x)

    def compare_whole(self, name: str, expected: Tensor) -> float:
        """Return nothing: no such format holds parameters that are saved whole."""
        raise AdapterError("a parameter that the format cannot hold", where=name, fix="report it")

    def _update(self, site: str) -> Update:
        if site not in self.updates:
            raise AdapterError("the file has no update of this site", where=site, fix="report it")
        return self.updates[site]


def verify_file(
    fused: Adapter, path: Path, sources: Sequence[SourceAdapter], rounding: Mapping[str, float] | None = None
) -> Verification:
    """Read an adapter's file, or folder, anew and compare it with what it should be.

    Args:
        fused: the adapter at the sites of its parents.
        path: what was written.
        sources: the adapters it was fused from.
        rounding: the stated error of each update that was written, if the file has a smaller dtype.

    Raises:
        AdapterError: the file has something else.
    """
    largest = max((rounding or {}).values(), default=0.0)
    stated = dict.fromkeys(fused.updates, largest) if rounding else None
    return verified(fused, _InFiles(fused, path), sources, stated)
