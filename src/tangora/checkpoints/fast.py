"""The choice between compiled kernels and passes of NumPy and torch, and the lane that calls the kernels.

Kernels (`tangora.checkpoints.kernels`) need the extra ``fast``, and give the same bits in less time. They compute
linear methods, and methods that declare `tangora.methods.Promises.after_thinning`, for tensors stored in half precision
or float32. Only random methods, whose numbers torch draws, then need torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from tangora.checkpoints.align import Target
from tangora.checkpoints.lane import Lane
from tangora.checkpoints.plan import OutputPlan
from tangora.checkpoints.select import Selection
from tangora.methods import Method
from tangora.methods._promises import AfterThinning
from tangora.storage.files import InputFiles
from tangora.storage.floats import LARGEST, Array
from tangora.storage.header import ITEMSIZE, Stored

__all__ = ["LEAST", "LEAST_THINNED", "UNCACHED", "FastLane", "Kernels", "kernels_for"]

LEAST = 2**34
"""Bytes of inputs from which kernels of linear methods are used: with 4.7 GB, loading numba took what they saved."""

LEAST_THINNED = 2**28
"""The same of the other methods, which would load torch without kernels."""

UNCACHED = 2**34
"""The same if numba can keep no compiled code, so that every process compiles it."""

_LINE = 64  # bytes that vector instructions read at a time


@dataclass(frozen=True)
class Kernels:
    """The compiled functions, and what a method makes of trimmed changes."""

    module: ModuleType
    after_thinning: AfterThinning


def kernels_for(plan: OutputPlan, method: Method, device: str) -> Kernels | None:
    """Return the kernels for a plan, loaded; None if it is computed without them.

    That is the case if the method or a dtype has no kernel, the inputs are small or adapters, the device is not the
    CPU, or numba is not installed, does not work here, or is switched off (``NUMBA_DISABLE_JIT=1``).
    """
    after_thinning: AfterThinning | None = "sum" if method.linear else method.after_thinning
    targets = [placement.target for placement in plan.placements]
    size = sum(stored.size for target in targets for stored in target.stored)
    if after_thinning is None or device != "cpu" or any(target.adapted for target in targets):
        return None
    if size < (LEAST if method.linear else LEAST_THINNED):
        return None
    module = _loaded()
    if module is None or not plan.dtypes <= module.KINDS.keys() or (size < UNCACHED and not module.CACHED):
        return None
    return Kernels(module, after_thinning)


@cache
def _loaded() -> ModuleType | None:
    """Return the module of the kernels, compiled or read from numba's cache; None if there is none."""
    if find_spec("numba") is None:
        return None
    try:
        from tangora.checkpoints import kernels  # deferred: imports numba, which is an extra and takes a while

        return kernels if kernels.load() else None
    except Exception:  # numba refuses this NumPy, LLVM this processor, the cache's disk is full: go on without
        return None


class FastLane(Lane):
    """A `Lane` on the CPU that passes the bytes of all models to the kernels.

    Args:
        files, tasks, block, itemsize: as of `Lane`.
        kernels: the compiled functions.
    """

    def __init__(self, files: InputFiles, tasks: int, block: int, itemsize: int, kernels: Kernels) -> None:
        self._models, self._kernels = tasks, kernels
        super().__init__(files, tasks, block, itemsize, wide=False)
        self._inside = np.empty((tasks, block), np.int32)

    @property
    def _sources(self) -> int:
        """A buffer per file, since a kernel reads all of them."""
        return 1 + self._models

    def _buffers(self, size: int) -> list[Array]:
        """Make them rows of one array, each aligned to its numbers."""
        self._stack = np.empty((self._sources, -(-size // _LINE) * _LINE), np.uint8)
        return [row[:size] for row in self._stack]

    def _load(self, raw: Array, dtype: str, into: Array) -> Array:
        self._kernels.module.widen(raw, self._kernels.module.KINDS[dtype], into)
        return into

    def _store(self, result: Array, dtype: str) -> Array:
        out = self._out[: len(result) * ITEMSIZE[dtype]]
        self._kernels.module.narrow(result, self._kernels.module.KINDS[dtype], out)
        return out

    def merged(
        self,
        target: Target,
        start: int,
        stop: int,
        dtype: str,
        weights: Sequence[float],
        cutoffs: Sequence[float] | None = None,
        draws: Array | None = None,
        density: float = 0.0,
    ) -> memoryview | None:
        """Return the bytes of the merged entries ``[start, stop)`` in ``dtype``; None if one is not finite.

        Args:
            target, start, stop: the entries.
            dtype: of the result.
            weights: one per model.
            cutoffs, or draws and density: thin the changes. Without them it is the sum of the weighted changes.
        """
        module, count = self._kernels.module, stop - start
        kinds = self._read_all(target, start, stop)
        factors = np.array(weights, np.float64).astype(np.float32)
        plain = cutoffs is None and draws is None
        drawn = np.empty((len(factors), 0), np.float32) if draws is None else np.ascontiguousarray(draws)
        thinning = (_bounds(cutoffs, self.tasks), drawn, density if draws is not None else 0.0)
        given = (self._stack, kinds, count, *thinning, factors, self._out)
        end = (module.KINDS[dtype], LARGEST[dtype])
        if plain or self._kernels.after_thinning == "sum":
            good = module.merge_sum(*given, *end)
        else:
            good = module.merge_elected(*given, *end, self._kernels.after_thinning == "elected_mean")
        return self._out[: count * ITEMSIZE[dtype]].data if good else None

    def count(self, target: Target, start: int, stop: int, selections: Sequence[Selection]) -> None:
        """See `Lane.count`."""
        kinds = self._read_all(target, start, stop)
        brackets = np.array([selection.bracket for selection in selections], np.int32).reshape(-1, 2)
        found, above = np.zeros((2, len(selections)), np.int64)
        lows, widths = np.ascontiguousarray(brackets.T)
        self._kernels.module.count_inside(self._stack, kinds, stop - start, lows, widths, self._inside, found, above)
        for selection, width, row, inside, higher in zip(selections, widths, self._inside, found, above, strict=True):
            if width:
                selection.add(row[:inside].copy(), int(higher))

    def _read_all(self, target: Target, start: int, stop: int) -> Array:
        """Read the base and every model; return their kinds. A model without the tensor changes nothing: the base."""
        kinds = []
        for source, part in enumerate((target.base, *target.parts)):
            stored = part if isinstance(part, Stored) else target.base
            size = ITEMSIZE[stored.dtype]
            view = self._views[source][: (stop - start) * size]
            if part is None:
                view[:] = self._views[0][: len(view)]
            else:
                self.files.read(stored, start * size, view)
            kinds.append(self._kernels.module.KINDS[stored.dtype])
        return np.array(kinds, np.int64)


def _bounds(cutoffs: Sequence[float] | None, tasks: int) -> Any:
    """Return the magnitudes up to which changes are removed: just below the cutoffs, or negative for none."""
    if cutoffs is None:
        return np.full(tasks, -1, np.float32)
    least = np.array(cutoffs, np.float32)
    return np.where(least > 0, np.nextafter(least, np.float32(0)), np.float32(-1))
