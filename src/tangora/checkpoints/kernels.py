"""Kernels compiled by numba: a block's arithmetic in one call, on spans short enough for the innermost cache.

They read the bytes of files, and give the same bits as NumPy's and torch's passes over the block: every entry sees the
same operations in the same order and precision. LLVM may use vectors, but without ``fastmath`` it neither reorders sums
nor fuses a product with a sum. What differs is that intermediate results do not travel to memory and back.

Importing this module imports numba. `tangora.checkpoints.fast` decides whether it is imported. Compiled code is kept in
numba's cache: ``__pycache__`` beside this file, or the user's cache folder if that cannot be written, or
``NUMBA_CACHE_DIR``. If none can be written, every process compiles again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from tangora.storage.floats import Array

__all__ = ["CACHED", "KINDS", "SPAN", "count_inside", "merge_elected", "merge_sum", "load", "narrow", "widen"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

KINDS = {"BF16": 0, "F16": 1, "F32": 2}
"""The number by which kernels know a dtype of files."""

SPAN = 1024
"""Entries that are worked on between two visits to the block."""

_BF16, _F16 = 0, 1
_U16, _U32, _I32, _F32, _F64 = np.uint16, np.uint32, np.int32, np.float32, np.float64


def _cached() -> bool:
    """Return whether numba finds a folder for its cache that can be written."""
    try:
        numba.njit(cache=True)(_cached)
    except RuntimeError:
        return False
    return True


CACHED = _cached()
"""Whether compiled code is kept for the next process."""


def _compiled(function: _Function) -> _Function:
    """Compile at the first call, to code that runs without the GIL."""
    return cast(_Function, numba.njit(cache=CACHED, nogil=True)(function))


@_compiled
def widen(raw: Array, kind: int, into: Array) -> None:
    """Convert the bytes ``raw`` of a dtype to float32.

    Args:
        raw: ``[bytes]`` in uint8, contiguous, aligned to its numbers.
        kind: a value of `KINDS`.
        into: ``[entries]`` in float32.
    """
    if kind == _BF16:
        halves, words = raw.view(_U16), into.view(_U32)
        for i in range(len(into)):
            words[i] = _U32(_U32(halves[i]) << 16)
    elif kind == _F16:
        halves, words = raw.view(_U16), into.view(_U32)
        for i in range(len(into)):
            words[i] = _U32((halves[i] & 0x7FFF) << 13)
        for i in range(len(into)):  # the exponents' biases differ by 112; exact, for subnormal numbers too
            into[i] *= _F32(2.0**112)
        for i in range(len(into)):
            if halves[i] & 0x7C00 == 0x7C00:  # infinity or NaN
                words[i] = _U32(0x7F800000 | (halves[i] & 0x3FF) << 13)
            words[i] = _U32(words[i] | (halves[i] & 0x8000) << 16)
    else:
        numbers = raw.view(_F32)
        for i in range(len(into)):
            into[i] = numbers[i]


@_compiled
def narrow(numbers: Array, kind: int, into: Array) -> None:
    """Round finite float32 numbers in the range of a dtype to it, to nearest, ties to even; overwrite them.

    Args:
        numbers: ``[entries]`` in float32.
        kind: a value of `KINDS`.
        into: ``[bytes]`` in uint8, contiguous, aligned to its numbers.
    """
    if kind == _BF16:
        words, halves = numbers.view(_U32), into.view(_U16)
        for i in range(len(numbers)):
            word = words[i]
            halves[i] = _U16(_U32(word + 0x7FFF + (word >> 16 & 1)) >> 16)
    elif kind == _F16:
        words, halves = numbers.view(_U32), into.view(_U16)
        for i in range(len(numbers)):
            halves[i] = _U16(words[i] >> 16 & 0x8000)
            words[i] = _U32(words[i] & 0x7FFFFFFF)
        for i in range(len(numbers)):
            if numbers[i] < _F32(2.0**-14):  # subnormal: one half has the same last place
                numbers[i] = _F32(numbers[i] + _F32(0.5)) - _F32(0.5)
            numbers[i] *= _F32(2.0**-112)  # exact
        for i in range(len(numbers)):
            halves[i] = _U16(halves[i] | _U32(words[i] + 0xFFF + (words[i] >> 13 & 1)) >> 13)
    else:
        out = into.view(_F32)
        for i in range(len(numbers)):
            out[i] = numbers[i]


@_compiled
def _read(raw: Array, kind: int, start: int, stop: int, into: Array) -> None:
    size = 4 if kind > _F16 else 2
    widen(raw[start * size : stop * size], kind, into)


@_compiled
def _written(base: Array, update: Array, start: int, kind: int, limit: float, out: Array) -> int:
    """Add the update to the base, round and write; return how many entries are not within the limit."""
    wrong, most = 0, _F32(limit)
    for i in range(len(base)):
        base[i] += update[i]
        wrong += 0 if abs(base[i]) <= most else 1  # a NaN is not
    size = 4 if kind > _F16 else 2
    narrow(base, kind, out[start * size : (start + len(base)) * size])
    return wrong


@_compiled
def _changed(base: Array, row: Array, bound: float, draws: Array, density: float) -> int:
    """Make a model's entries its thinned changes; return how many are not finite."""
    wrong, share, zero = 0, _F32(density), _F32(0)
    if density == 0:
        for i in range(len(row)):
            change = row[i] - base[i]
            wrong += 0 if abs(change) < np.inf else 1
            row[i] = zero if -bound <= change <= bound else change
    else:
        for i in range(len(row)):
            change = row[i] - base[i]
            wrong += 0 if abs(change) < np.inf else 1
            row[i] = change / share if draws[i] < share else zero
    return wrong


@_compiled
def merge_sum(
    raw: Array,
    kinds: Array,
    count: int,
    bounds: Array,
    draws: Array,
    density: float,
    weights: Array,
    out: Array,
    kind: int,
    limit: float,
) -> bool:
    """Write ``θ₀ + Σₜ wₜ·thin(θₜ − θ₀)``; return whether every change is finite, and every entry within the limit.

    Args:
        raw: ``[1 + tasks, bytes]``: the base's entries, then every model's, in their dtypes.
        kinds: ``[1 + tasks]``: their `KINDS`.
        count: the number of entries.
        bounds: ``[tasks]`` in float32: changes of at most this magnitude are removed; negative removes none.
        draws: ``[tasks, count]`` in float32: a change stays if its number is under the density, and is divided by it.
        density: 0 if the bounds thin, and not the draws.
        weights: ``[tasks]`` in float32.
        out: receives the bytes.
        kind: the dtype to write.
        limit: the largest magnitude to write.
    """
    bases, totals, rows = np.empty(SPAN, _F32), np.empty(SPAN, _F32), np.empty(SPAN, _F32)
    wrong = 0
    for start in range(0, count, SPAN):
        stop = min(start + SPAN, count)
        base, total, row = bases[: stop - start], totals[: stop - start], rows[: stop - start]
        _read(raw[0], kinds[0], start, stop, base)
        for t in range(len(weights)):
            _read(raw[t + 1], kinds[t + 1], start, stop, row)
            weight = weights[t]
            wrong += _changed(base, row, bounds[t], draws[t, start:stop], density)
            if t == 0:
                for i in range(stop - start):
                    total[i] = row[i] * weight
            else:
                for i in range(stop - start):
                    total[i] += row[i] * weight
        wrong += _written(base, total, start, kind, limit, out)
    return wrong == 0


@_compiled
def merge_elected(
    raw: Array,
    kinds: Array,
    count: int,
    bounds: Array,
    draws: Array,
    density: float,
    weights: Array,
    out: Array,
    kind: int,
    limit: float,
    mean: bool,
) -> bool:
    """Do the same with TIES' election in place of the sum: the sum, or the mean, of the entries of the elected sign.

    Arguments are those of `merge_sum`.
    """
    bases, totals = np.empty(SPAN, _F32), np.empty(SPAN, _F32)
    signs, counts, ballots = np.empty(SPAN, _F32), np.empty(SPAN, _F32), np.empty(SPAN, _F64)
    rows = np.empty((len(weights), SPAN), _F32)
    wrong = 0
    for start in range(0, count, SPAN):
        length = min(SPAN, count - start)
        base, total, sign, agreeing = bases[:length], totals[:length], signs[:length], counts[:length]
        ballot = ballots[:length]
        _read(raw[0], kinds[0], start, start + length, base)
        ballot[:] = 0.0
        for t in range(len(weights)):
            row = rows[t, :length]
            _read(raw[t + 1], kinds[t + 1], start, start + length, row)
            wrong += _changed(base, row, bounds[t], draws[t, start : start + length], density)
            for i in range(length):
                ballot[i] += _F64(row[i])
        for i in range(length):
            sign[i] = (_F32(1) if ballot[i] > 0 else _F32(0)) - (_F32(1) if ballot[i] < 0 else _F32(0))
            total[i] = _F32(0)
            agreeing[i] = _F32(0)
        for t in range(len(weights)):
            row, weight = rows[t, :length], weights[t]
            for i in range(length):
                size = row[i] * sign[i]
                size = size if size > _F32(0) else _F32(0)
                agreeing[i] += _F32(1) if size > _F32(0) else _F32(0)
                total[i] += size * weight
        for i in range(length):
            total[i] *= sign[i]
        if mean:
            for i in range(length):
                total[i] /= max(agreeing[i], _F32(1))
        wrong += _written(base, total, start, kind, limit, out)
    return wrong == 0


@_compiled
def count_inside(
    raw: Array, kinds: Array, count: int, lows: Array, widths: Array, inside: Array, found: Array, above: Array
) -> None:
    """Do what `tangora.checkpoints.select.Selection` does with a block of changes, for every model.

    Args:
        raw, kinds, count: as of `merge_sum`.
        lows, widths: ``[tasks]`` in int32: the bracket of bit patterns; a width of 0 or less skips the model.
        inside: ``[tasks, at least count]`` in int32, receives the patterns in the bracket, minus ``low``.
        found: ``[tasks]``, receives the number of these.
        above: ``[tasks]``, receives the number of patterns above the bracket.
    """
    bases, changes = np.empty(SPAN, _F32), np.empty(SPAN, _F32)
    found[:] = 0
    above[:] = 0
    for start in range(0, count, SPAN):
        length = min(SPAN, count - start)
        base, row = bases[:length], changes[:length]
        _read(raw[0], kinds[0], start, start + length, base)
        for t in range(len(lows)):
            low, width, kept, higher = lows[t], widths[t], inside[t], _I32(0)
            if width <= 0:
                continue
            _read(raw[t + 1], kinds[t + 1], start, start + length, row)
            patterns, unsigned = row.view(_I32), row.view(_U32)
            for i in range(length):
                row[i] -= base[i]
            for i in range(length):
                patterns[i] = _I32((patterns[i] & 0x7FFFFFFF) - low)
                higher += _I32(patterns[i] >= width)
            k, end = np.uint64(found[t]), _U32(width)  # no signed index, which might count from the end
            for i in range(length):
                kept[k] = patterns[i]  # overwritten by the next one unless it counts: no branch to guess wrong
                k += np.uint64(unsigned[i] < end)  # patterns below the bracket have wrapped around
            found[t] = k
            above[t] += higher


def load() -> bool:
    """Compile every kernel, or read it from the cache; return False if numba is not to compile anything."""
    config: Any = numba.config
    if config.DISABLE_JIT:
        return False
    raw, out, kinds = np.zeros((2, 64), np.uint8), np.zeros(64, np.uint8), np.zeros(2, np.int64)
    one, patterns, tallies = np.ones(1, _F32), np.ones(1, _I32), np.zeros((2, 1), np.int64)
    for kind in KINDS.values():
        widen(raw[0, :4], kind, one[:1])
        narrow(one, kind, out[:4])
    merge_sum(raw, kinds, 1, one, one[:, None], 0.0, one, out, 0, 1.0)
    merge_elected(raw, kinds, 1, one, one[:, None], 0.0, one, out, 0, 1.0, True)
    count_inside(raw, kinds, 1, patterns, patterns, np.zeros((1, 1), _I32), *tallies)
    return True
