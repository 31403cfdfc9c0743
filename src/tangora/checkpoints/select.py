"""Find the k-th largest magnitude of a stream, exactly, in one pass and little memory.

A float's magnitude and its bits without the sign, read as an integer, are in the same order. So:

1. a sample of the entries brackets the cutoff between two bit patterns, almost surely (`Selection.guess`);
2. one pass counts the entries above that bracket, and keeps those inside; too many to keep are counted by pattern, in
   up to 2¹⁹ bins (`Selection.count`);
3. the cutoff is the entry of the right rank among those inside, or the pattern of the bin that it falls into; if that
   bin has more than one pattern, or the bracket missed the cutoff, another pass follows (`Selection.narrow`).

The result does not depend on the sample, the order or the blocks: these affect only the number of passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from tangora.storage.floats import Array

__all__ = ["Selection"]

_BINS = 19  # log2: a histogram of 4 MiB
_WAITING = 2**18  # entries that wait to be counted together
_SIGMAS = 4.5  # standard deviations of the sample's rank


class Selection:
    """The search for one cutoff: the ``keep``-th largest magnitude of ``total`` entries.

    Args:
        keep: at least 1; the cutoff for ``total`` or more is 0.0, which removes nothing.
        total: the number of entries that are counted in a pass.
        wide: whether the entries are float64, not float32.

    >>> wanted = Selection(keep=2, total=5)
    >>> wanted.guess([np.array([0.5, -3.0], np.float32)])
    >>> while wanted.cutoff is None:
    ...     wanted.count(np.array([0.5, -3.0, 1.0, -2.0, 0.0], np.float32))
    ...     wanted.narrow()
    >>> wanted.cutoff
    2.0
    """

    def __init__(self, keep: int, total: int, wide: bool = False) -> None:
        self.keep, self.total = keep, total
        self._float = np.dtype(np.float64 if wide else np.float32)
        self._int = np.dtype(np.int64 if wide else np.int32)
        self._mask = np.iinfo(self._int).max
        self._end = int(np.array(np.inf, self._float).view(self._int)) + 1
        self.cutoff: float | None = 0.0 if keep >= total else None
        self._lock = Lock()
        self._set(0, self._end)

    def _set(self, low: int, high: int) -> None:
        """Set the bracket to the patterns ``[low, high)``."""
        self._low, self._width = low, high - low
        self._shift = max(0, (self._width - 1).bit_length() - _BINS)
        self._bins: Array | None = None  # made when there are too many entries inside to keep
        self._above, self._held = 0, 0
        self._waiting: list[Array] = []

    def guess(self, samples: Sequence[Array]) -> None:
        """Bracket the cutoff by runs of entries from the stream; if they are all of it, the cutoff is known."""
        if self.cutoff is not None or not samples:
            return
        patterns = [self._patterns(sample) for sample in samples]
        ordered = np.sort(np.concatenate(patterns))[::-1]
        share, size = self.keep / self.total, len(ordered)
        if size == self.total:
            self.cutoff = self._value(int(ordered[self.keep - 1]))
            return
        # Neighbours are similar, so the runs differ by more than as many independent entries would.
        middle = ordered[min(size - 1, int(size * share))]
        spread = sum((np.count_nonzero(run >= middle) - share * len(run)) ** 2 for run in patterns)
        margin = _SIGMAS * math.sqrt(max(size * share * (1 - share), float(spread))) + 2
        first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
        high = int(ordered[first]) + 1 if first >= 0 else self._end
        self._set(int(ordered[last]) if last < size else 0, high)

    @property
    def bracket(self) -> tuple[int, int]:
        """The lowest bit pattern of the bracket, and the number of its patterns; 0 if the cutoff is known."""
        return (self._low, self._width) if self.cutoff is None else (0, 0)

    def count(self, entries: Any) -> None:
        """Count a block of entries, overwriting it; blocks come in any order, from any thread."""
        if self.cutoff is None:
            numpy = isinstance(entries, np.ndarray)
            self.add(*(self._inside(entries) if numpy else self._inside_on_device(entries)))

    def add(self, inside: Array, above: int) -> None:
        """Count a block by its patterns in the bracket, minus the lowest of them, and its number of those above."""
        with self._lock:
            self._above += above
            self._waiting.append(inside)
            self._held += len(inside)
            if self._held > _WAITING:
                self._fill_bins()

    def narrow(self) -> None:
        """Set the cutoff after a pass, or a narrower bracket for the next."""
        if self.cutoff is not None:
            return
        inside = self._held if self._bins is None else self._held + int(self._bins.sum())
        if self._above >= self.keep:
            self._set(self._low + self._width, self._end)
        elif self._above + inside < self.keep:
            self._set(0, self._low)
        elif self._bins is None:
            entries = np.concatenate(self._waiting)
            entries.sort()  # differences of half precision are few numbers, over which NumPy's partition takes longer
            self.cutoff = self._value(self._low + int(entries[len(entries) - (self.keep - self._above)]))
        else:
            bins = self._fill_bins()
            down = self._above + np.cumsum(bins[::-1])  # entries in the highest bin and above, the two highest, ...
            bin_ = len(bins) - 1 - int(np.searchsorted(down, self.keep))
            low = self._low + (bin_ << self._shift)
            high = min(low + (1 << self._shift), self._low + self._width)
            if high - low == 1:
                self.cutoff = self._value(low)
            else:
                self._set(low, high)

    def _fill_bins(self) -> Array:
        """Count the waiting entries into the bins."""
        bins = self._bins
        if bins is None:
            bins = self._bins = np.zeros(((self._width - 1) >> self._shift) + 1, np.int64)
        if self._waiting:
            waiting = np.concatenate(self._waiting) >> self._int.type(self._shift)
            bins += np.bincount(waiting, minlength=len(bins))
        self._waiting, self._held = [], 0
        return bins

    def _patterns(self, entries: Array) -> Array:
        numbers: Array = np.bitwise_and(entries.view(self._int), self._int.type(self._mask))
        return numbers

    def _inside(self, entries: Array) -> tuple[Array, int]:
        patterns = entries.view(self._int)
        patterns &= self._int.type(self._mask)
        patterns -= self._int.type(self._low)
        unsigned = patterns.view(f"u{patterns.itemsize}")
        # Patterns below the bracket have wrapped around. Few are inside, so indexing is faster than a mask.
        indices = np.flatnonzero(np.less(unsigned, unsigned.dtype.type(self._width)))
        above = np.count_nonzero(np.greater_equal(patterns, self._int.type(self._width)))
        return patterns[indices], int(above)

    def _inside_on_device(self, entries: Any) -> tuple[Array, int]:
        """Do the same for a torch tensor, on its device."""
        import torch  # deferred: torch takes a second, and linear methods do without it

        kind = torch.int64 if self._int.itemsize == 8 else torch.int32
        patterns = (entries.view(kind) & self._mask) - self._low
        inside = patterns[(patterns >= 0) & (patterns < self._width)]
        return inside.cpu().numpy(), int((patterns >= self._width).sum())

    def _value(self, pattern: int) -> float:
        return float(np.array(pattern, self._int).view(self._float))
