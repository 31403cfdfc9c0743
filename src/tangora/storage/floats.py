"""Convert the floating-point numbers of files to and from those that are computed with.

NumPy has no bfloat16. If torch is not loaded (its import takes longer than a gigabyte of conversions), bits are
converted here: a bfloat16 is the upper half of a float32. Rounding to nearest, ties to even, adds half of the last
place, and one bit less if the last place is even; the carry rounds. torch gives the same bits in half the time.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGEST", "Array", "narrowed", "widen"]

Array: TypeAlias = "np.ndarray[Any, Any]"

LARGEST = {
    "BF16": float(np.array(0x7F7F0000, np.uint32).view(np.float32)),
    "F16": float(np.finfo(np.float16).max),
    "F32": float(np.finfo(np.float32).max),
    "F64": float(np.finfo(np.float64).max),
}
"""The largest finite number of each dtype."""

_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def widen(raw: Array, dtype: str, into: Array) -> Array:
    """Convert the numbers in the bytes ``raw`` to the dtype of ``into``, float32 or float64, and return ``into``.

    >>> widen(np.array([0x3FC0, 0xC000], np.uint16).view(np.uint8), "BF16", np.empty(2, np.float32))
    array([ 1.5, -2. ], dtype=float32)
    """
    if _as_bits(dtype, into):
        np.multiply(raw.view(np.uint16), np.uint32(2**16), out=into.view(np.uint32))
    elif dtype in ("BF16", "F16"):
        _tensor(into).copy_(_tensor(raw, dtype))
    else:
        np.copyto(into, raw.view(_TYPES[dtype]), casting="same_kind")
    return into


def narrowed(numbers: Array, dtype: str, into: Array) -> Array:
    """Round finite numbers to ``dtype``, to nearest, ties to even; return their bytes, in ``into``.

    float64 becomes a half precision through float32, as in torch.

    >>> narrowed(np.array([1.5, -2.0], np.float32), "BF16", np.empty(4, np.uint8)).view(np.uint16).tolist()
    [16320, 49152]
    """
    out = into[: _SIZES[dtype] * len(numbers)]
    if _as_bits(dtype, numbers):
        bits = numbers.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        np.copyto(out.view(np.uint16), rounded, casting="unsafe")
    elif dtype in ("BF16", "F16"):
        _tensor(out, dtype).copy_(_tensor(numbers))
    else:
        np.copyto(out.view(_TYPES[dtype]), numbers, casting="same_kind")
    return out


def _as_bits(dtype: str, numbers: Array) -> bool:
    return dtype == "BF16" and numbers.dtype == np.float32 and "torch" not in sys.modules


def _tensor(numbers: Array, dtype: str | None = None) -> Tensor:
    """Return the same memory for torch, which converts with vector instructions; NumPy does float16 one by one."""
    import torch  # deferred: torch takes a second, and linear methods do without it

    tensor = torch.from_numpy(numbers)
    return tensor if dtype is None else tensor.view({"BF16": torch.bfloat16, "F16": torch.float16}[dtype])
