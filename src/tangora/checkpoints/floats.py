"""Floating-point numbers of files, to and from those that are computed with; NumPy has no bfloat16, so it is bits here.

A bfloat16 is the upper half of a float32. Rounding adds what carries into that half: half of the last place, and one
bit less where the last place is even, which is to nearest, ties to even.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

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


def widen(raw: Array, dtype: str, into: Array) -> Array:
    """The numbers whose bytes are ``raw``, in ``into``, float32 or float64.

    >>> widen(np.array([0x3FC0, 0xC000], np.uint16).view(np.uint8), "BF16", np.empty(2, np.float32))
    array([ 1.5, -2. ], dtype=float32)
    """
    if dtype == "BF16" and into.dtype == np.float32:
        bits = into.view(np.uint32)
        np.copyto(bits, raw.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
    elif dtype == "BF16":
        np.copyto(into, widen(raw, dtype, np.empty(len(into), np.float32)))
    elif dtype == "F16":
        _by_torch(into, raw.view(np.float16))
    else:
        np.copyto(into, raw.view(_TYPES[dtype]), casting="same_kind")
    return into


def narrowed(numbers: Array, dtype: str, into: Array) -> Array:
    """Finite numbers rounded to ``dtype``, to nearest, ties to even: their bytes, in ``into``.

    >>> narrowed(np.array([1.5, -2.0], np.float32), "BF16", np.empty(4, np.uint8)).view(np.uint16).tolist()
    [16320, 49152]
    """
    if dtype == "BF16":
        out = into[: 2 * len(numbers)]
        single = numbers if numbers.dtype == np.float32 else numbers.astype(np.float32)
        bits = single.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        np.copyto(out.view(np.uint16), rounded, casting="unsafe")
        return out
    out = into[: np.dtype(_TYPES[dtype]).itemsize * len(numbers)]
    if dtype == "F16":
        _by_torch(out.view(np.float16), numbers)
    else:
        np.copyto(out.view(_TYPES[dtype]), numbers, casting="same_kind")
    return out


def _by_torch(into: Array, numbers: Array) -> None:
    """NumPy converts half precision one by one; torch by the processor's own instructions."""
    import torch

    torch.from_numpy(into).copy_(torch.from_numpy(numbers))
