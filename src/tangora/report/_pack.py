"""Pack cached logits into few bytes: block floating point, with one power of two per row and column.

A constant added to all classes of a row changes no prediction, so each row of each column is first centred on the
middle of its range. A value is then ``mantissa · 2^exponent``: exponents as int8, the upper 16 bits of the mantissas as
int16, and their lower bits (8, 4 or 0) packed into bytes. 24 bits are the precision of float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from tangora.errors import FileError

if TYPE_CHECKING:
    from jaxtyping import Float32

    from tangora.tangent.columns import Columns

__all__ = ["BITS", "pack", "packed_size", "stacked", "unpack"]

BITS = (24, 20, 16)
_LOWEST = -100  # smallest exponent: below it, all entries of the row are zero in float32


def packed_size(columns: Columns, bits: int, rows: int | None = None) -> int:
    """Return the number of bytes that `pack` makes of ``rows`` rows, by default all."""
    count, classes = columns.origin.shape
    blocks = (1 + len(columns.vectors)) * min(count, count if rows is None else rows)
    return blocks + 2 * blocks * classes + -(-blocks * classes * (bits - 16) // 8)


def stacked(columns: Columns) -> Float32[np.ndarray, "columns rows classes"]:
    """Return origin and columns, with each row centred on the middle of its range.

    Raises:
        FileError: a logit is not finite.
    """
    parts = [columns.origin[None], columns.columns]
    values: np.ndarray = np.concatenate([p.detach().cpu().float().numpy() for p in parts])
    if not np.isfinite(values).all():
        where = f"the columns of {columns.task}, {columns.split}"
        raise FileError("a cached logit is not finite", where=where, fix="delete the file and run the recipe again")
    centred: np.ndarray = values - (values.max(-1, keepdims=True) + values.min(-1, keepdims=True)) / 2
    return centred


def pack(values: Float32[np.ndarray, "columns rows classes"], bits: int) -> bytes:
    """Return the exponents, upper halves and lower bits of ``values``, in this order, little-endian."""
    most = 2 ** (bits - 1) - 1
    largest = np.maximum(np.abs(values).max(-1, keepdims=True).astype(np.float64) / most, 2.0**_LOWEST)
    exponents = np.ceil(np.log2(largest)).astype(np.int8)
    mantissas = np.rint(np.ldexp(values.astype(np.float64), -exponents.astype(np.int32))).astype(np.int32).reshape(-1)
    extra = bits - 16
    low = (mantissas & (2**extra - 1)).astype(np.uint8)
    if extra == 4:
        low = np.append(low, np.zeros(len(low) % 2, np.uint8))
        low = low[::2] | low[1::2] << 4
    parts: Iterable[np.ndarray] = [exponents, (mantissas >> extra).astype("<i2"), low if extra else low[:0]]
    return b"".join(part.tobytes() for part in parts)


def unpack(data: bytes, shape: tuple[int, int, int], bits: int) -> Float32[np.ndarray, "columns rows classes"]:
    """Return the values that the page reads from the bytes, as ``columnsOf`` in ``explorer_model.js`` does."""
    blocks, extra = shape[0] * shape[1], bits - 16
    numbers = blocks * shape[2]
    exponents = np.frombuffer(data, np.int8, blocks).reshape(*shape[:2], 1)
    mantissas = np.frombuffer(data, "<i2", numbers, blocks).astype(np.int32) << extra
    low = np.frombuffer(data, np.uint8, offset=blocks + 2 * numbers)
    if extra == 4:
        low = np.stack([low & 15, low >> 4], -1).reshape(-1)[:numbers]
    if extra:
        mantissas = mantissas | low
    return np.ldexp(mantissas.reshape(shape).astype(np.float32), exponents.astype(np.int32))
