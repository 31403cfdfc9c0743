"""Keep some entries of an update and drop the others: by magnitude (trim) or at random (DARE)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from tangora.errors import ArgumentError
from tangora.methods._sums import widened

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tangora.methods._sums import Array

# Entries from which a sample pays, the size of it, and the entries of a block.
_MANY, _SAMPLE, _BLOCK = 2**17, 2**15, 2**18

__all__ = ["cutoffs_of", "kept", "rescaled_samples", "threshold", "trim"]


def kept(density: float, entries: int) -> int:
    """Return how many of ``entries`` a density keeps: ``⌈density · entries⌉``, with the density as a decimal number.

    >>> kept(0.55, 100), math.ceil(0.55 * 100)
    (55, 56)
    """
    return math.ceil(Fraction(str(float(density))) * entries)


def threshold(delta: Float[Tensor, "*param"], density: float) -> float:
    """Return the magnitude of the smallest entry that is kept; all entries equal to it are kept."""
    entries = widened(delta.detach()).reshape(-1)
    drop = entries.numel() - kept(density, entries.numel())
    if drop <= 0:  # also the empty tensor
        return 0.0
    if entries.device.type != "cpu":
        return float(entries.abs().kthvalue(drop + 1).values)
    array = entries.numpy()
    inside, below = _around(array, drop) if len(array) >= _MANY else (abs(array), 0)
    inside.partition(drop - below)  # NumPy's vectorized introselect: two to three times as fast as kthvalue
    return float(inside[drop - below])


def _around(array: Array, place: int) -> tuple[Array, int]:
    """Return the magnitudes between two bounds that have that of rank ``place`` between them, and how many are below.

    A sample gives the bounds, and one pass counts, in blocks that stay in the cache: that is cheaper than a selection
    among all. If the magnitude is not between them after all, which 5 standard deviations make rare, all are returned.
    So the sample decides the time alone.
    """
    import numpy as np  # deferred: only updates in memory need it

    sample = abs(array[:: len(array) // _SAMPLE | 1])  # an odd step, so that all columns of a matrix are sampled
    share = place / len(array)
    margin = 5 * math.sqrt(len(sample) * share * (1 - share)) + 2
    first, last = math.floor(len(sample) * share - margin), math.ceil(len(sample) * share + margin)
    sample.partition([place for place in (first, last) if 0 <= place < len(sample)])
    low = sample[first] if first >= 0 else array.dtype.type(0)
    high = sample[last] if last < len(sample) else array.dtype.type(np.inf)
    below, parts, row = 0, [], np.empty(_BLOCK, array.dtype)
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK]
        magnitudes = np.abs(block, out=row[: len(block)])
        smaller = magnitudes < low
        below += int(np.count_nonzero(smaller))
        parts.append(magnitudes[np.flatnonzero((magnitudes <= high) & ~smaller)])
    inside = np.concatenate(parts)
    return (inside, below) if below <= place < below + len(inside) else (abs(array), 0)


def trim(delta: Float[Tensor, "*param"], least: float) -> Float[Tensor, "*param"]:
    """Return ``delta`` (in float32 or better) with every entry of magnitude below ``least`` set to zero."""
    delta = widened(delta)
    if least <= 0:
        return delta
    import numpy as np  # deferred: only updates in memory need it
    import torch  # deferred: torch takes a second, and compiled code does without it

    # hardshrink keeps entries larger than its bound, in one pass; a comparison and a `where` take ten times as long
    number = np.float64 if delta.dtype == torch.float64 else np.float32
    return torch.hardshrink(delta, float(np.nextafter(number(least), number(0))))


def cutoffs_of(
    deltas: Float[Tensor, " tasks *param"], density: float, given: Sequence[float] | None = None
) -> list[float]:
    """Return the `threshold` of every task, or those that the engine has computed already."""
    if given is None:
        return [threshold(delta, density) for delta in deltas]
    if len(given) != len(deltas):
        raise ArgumentError("one cutoff per task", got=len(given), where="cutoffs")
    return [float(cutoff) for cutoff in given]


def rescaled_samples(
    deltas: Float[Tensor, " tasks *param"], uniforms: Float[Tensor, " tasks *param"], density: float
) -> list[Float[Tensor, "*param"]]:
    """Apply DARE to every task: keep an entry if its uniform number is below ``density``, and divide it by that."""
    import torch  # deferred: torch takes a second, and compiled code does without it

    pairs = zip(map(widened, deltas), uniforms, strict=True)
    return [torch.where(uniform < density, delta / density, 0.0) for delta, uniform in pairs]
