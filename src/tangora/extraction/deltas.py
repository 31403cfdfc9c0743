"""The change of one parameter, read in blocks of rows from both checkpoints, and how much of it is rounding.

A number that is stored in bfloat16 was rounded to a multiple of its last digit, so its change is known up to half of
that. If the lost digits are uniform, the square of a rounding is ulp²/12 on average. It is summed over the entries that
changed: an entry that rounding returned to the base's value lost its whole change, which no file shows. So the sum is
a lower estimate of how far the stored change is from the one that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FileError
from tangora.extraction.pairs import Pair
from tangora.storage.tensors import read_rows
from tangora.updates.update import LowRank

__all__ = ["Delta", "matrix_of", "measure", "residual", "value_of"]

_BLOCK = 2**22  # entries that are read at a time
_MANTISSA = {"BF16": 7, "F16": 10, "F32": 23, "F64": 52}
_LEAST = {"BF16": -126, "F16": -14, "F32": -126, "F64": -1022}


@dataclass(frozen=True)
class Delta:
    """How much a parameter changed.

    Attributes:
        square: the squared norm of the change.
        rounding: an estimate of the squared norm of what rounding to the tuned file's dtype added to it.
    """

    square: float
    rounding: float


def measure(pair: Pair) -> Delta:
    """Read a pair once.

    Raises:
        FileError: an entry is not finite.
    """
    square = rounding = 0.0
    for tuned, base in _blocks(pair):
        change = tuned - base
        square += float(change.square().sum())
        rounding += float((_ulp(tuned, pair.tuned.dtype).square() / 12 * (change != 0)).sum())
    if not math.isfinite(square):
        fix = "the training diverged or the file is damaged: train or copy it again"
        raise FileError("a weight is NaN or infinite, or a change too large", where=pair.name, fix=fix)
    return Delta(square, rounding)


def matrix_of(pair: Pair) -> Float[Tensor, "out in"]:
    """Return the change of a weight in the orientation of ``B @ A``, in float32; in float64 if a file is.

    The difference of two bfloat16 numbers has up to 24 digits or is rounded in the last of them, as in a merge.
    """
    assert pair.base is not None
    wide = "F64" in (pair.tuned.dtype, pair.base.dtype)
    rows = torch.empty(pair.tuned.shape[0], pair.tuned.entries // pair.tuned.shape[0], dtype=torch.float32)
    rows = rows.double() if wide else rows
    at = 0
    for tuned, base in _blocks(pair):
        rows[at : at + len(tuned)] = tuned - base
        at += len(tuned)
    return rows.T if pair.turned else rows


def residual(pair: Pair, update: LowRank) -> float:
    """Return ``‖ΔW − s·B A‖²``: both checkpoints are read again, and every entry is computed in float64."""
    left, right = (update.a.T, update.b.T) if pair.turned else (update.b, update.a)
    left, right = left.double() * update.scaling, right.double()
    total, at = 0.0, 0
    for tuned, base in _blocks(pair):
        total += float((tuned - base - left[at : at + len(tuned)] @ right).square().sum())
        at += len(tuned)
    return total


def value_of(pair: Pair) -> Tensor:
    """Return the tuned value, in float32 (float64 stays)."""
    stored = pair.tuned
    return read_rows(stored, 0, stored.shape[0] if stored.shape else 1).reshape(stored.shape)


def _blocks(pair: Pair) -> Iterator[tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]]:
    """Yield rows of both tensors in float64; where the base has fewer, only those that it has."""
    assert pair.base is not None
    count = min(pair.tuned.shape[0], pair.base.shape[0]) if pair.tuned.shape else 1
    width = max(1, pair.base.entries // max(1, count))
    step = max(1, _BLOCK // width)
    for at in range(0, count, step):
        stop = min(at + step, count)
        yield read_rows(pair.tuned, at, stop).double(), read_rows(pair.base, at, stop).double()


def _ulp(values: Tensor, dtype: str) -> Tensor:
    """Return the distance of neighbouring numbers of a dtype at each value."""
    exponents = torch.frexp(values)[1].double() - 1
    return torch.exp2(exponents.clamp(min=_LEAST[dtype]) - _MANTISSA[dtype])
