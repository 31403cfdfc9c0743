"""A lane, the working memory of one thread: blocks are read into its buffers, subtracted from the base, and rounded.

On the CPU it uses NumPy's arrays: a linear method then needs no torch, and importing torch takes longer than fusing a
gigabyte. Other methods get torch's view of the same memory. `tangora.checkpoints.gpu` is the lane through a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tangora.checkpoints.align import Target
from tangora.checkpoints.select import Selection
from tangora.errors import ArgumentError, FileError, FusionError, TangoraError
from tangora.storage.files import InputFiles
from tangora.storage.floats import LARGEST, Array, narrowed, widen
from tangora.storage.header import ITEMSIZE, Stored

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Lane", "Numbers"]

Numbers: TypeAlias = Any
"""A NumPy array, or a torch tensor on a GPU: arithmetic in place is written the same way for both."""


class Lane:
    """Buffers for blocks of ``block`` entries of ``tasks`` models and their base.

    Args:
        files: the open inputs.
        tasks: the number of models.
        block: entries in the largest block.
        itemsize: bytes of the widest entry read or written.
        wide: compute in float64, not in float32.
    """

    device = "cpu"

    def __init__(self, files: InputFiles, tasks: int, block: int, itemsize: int, wide: bool) -> None:
        self.files, self.tasks, self.block, self.wide = files, tasks, block, wide
        np.seterr(all="ignore")  # for this thread: results are checked, and an error names the tensor
        self._raw = self._buffers(block * itemsize)
        self._views = [raw.data for raw in self._raw]
        self._out = self._bytes(block * itemsize)
        self._base, self._sum, self._one = (self.make(block) for _ in range(3))
        self._deltas: Numbers = None
        self.drawn: dict[tuple[Any, ...], Tensor] = {}  # the uniform numbers of the current chunk

    # Overridden for a GPU

    @property
    def _sources(self) -> int:
        """The number of buffers of raw bytes."""
        return 1

    def _buffers(self, size: int) -> list[Array]:
        return [self._bytes(size) for _ in range(self._sources)]

    def _bytes(self, count: int) -> Array:
        return np.empty(count, np.uint8)

    def host(self, numbers: Numbers) -> Array:
        """Return numbers as a NumPy array."""
        array: Array = numbers
        return array

    def make(self, *shape: int) -> Numbers:
        """Return an uninitialized array."""
        return np.empty(shape, np.float64 if self.wide else np.float32)

    def numbers(self, tensor: Tensor) -> Numbers:
        """Return a tensor as numbers of this lane."""
        return tensor.numpy()

    def tensor(self, numbers: Numbers) -> Tensor:
        """Return the same memory as a torch tensor."""
        import torch  # deferred: torch takes a second, and linear methods do without it

        return torch.from_numpy(numbers)

    def _load(self, raw: Array, dtype: str, into: Numbers) -> Numbers:
        return widen(raw, dtype, into)

    def _store(self, result: Numbers, dtype: str) -> Array:
        return narrowed(result, dtype, self._out)

    def _extremes(self, numbers: Numbers) -> tuple[float, float]:
        return float(numbers.min()), float(numbers.max())

    # The same on every device

    def base(self, target: Target, start: int, stop: int) -> Numbers:
        """Read the base's entries ``[start, stop)``."""
        return self._read(target.base, start, stop, self._base[: stop - start], 0)

    def delta(self, target: Target, task: int, start: int, stop: int, base: Numbers, into: Numbers) -> Numbers:
        """Read how model ``task`` changed these entries: its tensor minus the base, or its update."""
        part = target.parts[task]
        if isinstance(part, Stored):
            self._read(part, start, stop, into, 1 + task)
            into -= base
        elif part is None:
            into[:] = 0
        else:
            into[:] = self.numbers(part.rows(start // target.width, stop // target.width).reshape(-1))
        return into

    def deltas(self, target: Target, start: int, stop: int, base: Numbers) -> Numbers:
        """Read every model's changes ``[tasks, entries]``, and check that they are finite.

        Raises:
            FileError: a model or the base has NaN or infinity here.
        """
        rows = self.differences(target, start, stop, base)
        if not math.isfinite(float(rows.sum())) and not all(map(math.isfinite, self._extremes(rows))):
            raise self.not_finite(target, start, stop)
        return rows

    def differences(self, target: Target, start: int, stop: int, base: Numbers) -> Numbers:
        """Read every model's changes without a check, for a pass that is followed by another."""
        rows = self.rows()[:, : stop - start]
        for task in range(self.tasks):
            self.delta(target, task, start, stop, base, rows[task])
        return rows

    def count(self, target: Target, start: int, stop: int, selections: Sequence[Selection]) -> None:
        """Count every model's changes ``[start, stop)`` for its cutoff."""
        rows = self.differences(target, start, stop, self.base(target, start, stop))
        for selection, row in zip(selections, rows, strict=True):
            selection.count(row)

    def sampled(self, target: Target, spans: Sequence[tuple[int, int]]) -> Numbers:
        """Read every model's changes in these spans, concatenated; together they must fit into a block."""
        base = self._gathered(target.base, spans, self._base, 0)
        rows = self.rows()[:, : len(base)]
        for task, (row, part) in enumerate(zip(rows, target.parts, strict=True)):
            if isinstance(part, Stored):
                self._gathered(part, spans, row, 1 + task)
                row -= base
            elif part is None:
                row[:] = 0
            else:
                at = 0
                for a, b in spans:
                    dense = part.rows(a // target.width, b // target.width).reshape(-1)
                    row[at : at + b - a] = self.numbers(dense)
                    at += b - a
        return rows

    def rows(self) -> Numbers:
        """Return a work buffer ``[tasks, block]``, made when it is first needed."""
        if self._deltas is None:
            self._deltas = self.make(self.tasks, self.block)
        return self._deltas

    def row(self, count: int) -> Numbers:
        """Return a work buffer for one task."""
        return self._one[:count]

    def spare(self, count: int) -> Numbers:
        """Return a buffer for sums."""
        return self._sum[:count]

    def rounded(self, result: Numbers, dtype: str) -> memoryview | None:
        """Return the bytes of the result in ``dtype`` (nearest, ties to even); None if one is not finite."""
        limit = LARGEST[dtype]
        if len(result) and not all(-limit <= end <= limit for end in self._extremes(result)):  # false for a NaN
            return None
        return self._store(result, dtype).data

    def copied(self, target: Target, start: int, stop: int) -> memoryview:
        """Return the base's bytes of a tensor that is copied.

        Raises:
            FusionError: a model's bytes differ.
        """
        size = ITEMSIZE[target.base.dtype]
        ours, theirs = (view[: (stop - start) * size] for view in (self._out.data, self._views[0]))
        self.files.read(target.base, start * size, ours)
        for stored in target.stored[1:]:
            self.files.read(stored, start * size, theirs)
            if ours != theirs:
                fix = "integers cannot be fused and must be equal in every checkpoint"
                raise FusionError("integers differ from the base's", where=f"{target.name} in {stored.path}", fix=fix)
        return ours

    def expect(self, target: Target, start: int, stop: int) -> None:
        """Advise the system to read these entries ahead."""
        for stored in target.stored:
            size = ITEMSIZE[stored.dtype]
            self.files.expect(stored, start * size, (stop - start) * size)

    def not_finite(self, target: Target, start: int, stop: int) -> TangoraError:
        """Return an error that names the input with a NaN or infinity; else one that the result is too large."""
        for stored in target.stored:
            low, high = self._extremes(self._read(stored, start, stop, self.make(stop - start), 0))
            if not (math.isfinite(low) and math.isfinite(high)):
                bad = "NaN" if math.isnan(low) or math.isnan(high) else "infinity"
                fix = "the training diverged or the file is damaged: train or copy it again"
                return FileError(f"a weight is {bad}", where=f"{target.name} in {stored.path}", fix=fix)
        fix = "use smaller weights, or a wider --dtype"
        return ArgumentError("the result is too large for its dtype", where=target.name, fix=fix)

    def _gathered(self, stored: Stored, spans: Sequence[tuple[int, int]], into: Numbers, source: int) -> Numbers:
        size, at, source = ITEMSIZE[stored.dtype], 0, source % self._sources
        for start, stop in spans:
            self.files.read(stored, start * size, self._views[source][at * size : (at + stop - start) * size])
            at += stop - start
        return self._load(self._raw[source][: at * size], stored.dtype, into[:at])

    def _read(self, stored: Stored, start: int, stop: int, into: Numbers, source: int) -> Numbers:
        size, source = ITEMSIZE[stored.dtype], source % self._sources
        count = (stop - start) * size
        self.files.read(stored, start * size, self._views[source][:count])
        return self._load(self._raw[source][:count], stored.dtype, into)
