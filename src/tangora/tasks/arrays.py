"""Read the arrays of an npz file, after their headers have shown that they are arrays and fit in memory.

A zip file of kilobytes can hold arrays of terabytes: zeros compress a thousandfold, and a header can declare any shape.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from tangora.errors import DataError
from tangora.support.printable import printable
from tangora.support.sizes import memory_limit, size_text

__all__ = ["SHARE", "read_arrays", "refuse_large"]

SHARE = 0.5
"""The share of the memory that the rows of a file may take: preprocessing needs as much again."""

_POINTER = 8  # bytes of a row in a list
_LONGEST = 10_000  # bytes of an array's header; NumPy writes 128
_FIX = "save plain arrays of numbers or texts with numpy.savez"


def read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """Read every array of an npz file; no pickle.

    Raises:
        DataError: an entry is no array of numbers or texts, does not match its header, or they do not fit in memory.
        OSError, BadZipFile, ValueError: the file is missing or damaged.
    """
    with zipfile.ZipFile(path) as file:
        total = 0
        for entry in file.infolist():
            total += _checked_size(file, entry, path)
            refuse_large(total, path)
        arrays = {}
        for entry in file.infolist():
            with file.open(entry) as stream:
                arrays[entry.filename.removesuffix(".npy")] = npy.read_array(stream, allow_pickle=False)
    return arrays


def refuse_large(size: int, path: Path) -> None:
    """Raise `DataError` if rows of this many bytes do not fit in `SHARE` of the memory."""
    if size > (most := int(SHARE * memory_limit())):
        what = f"the rows take more memory than half of what this machine has, {size_text(most)}"
        raise DataError(what, got=size_text(size), where=path, fix="split the file, or use a machine with more memory")


def _checked_size(file: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> int:
    """Return the bytes of an array by its header, which must be those that the zip file lists for it."""
    where = f"{printable(entry.filename, most=200)} in {path}"
    if not entry.filename.endswith(".npy"):
        raise DataError("an entry that is no array", where=where, fix=_FIX)
    with file.open(entry) as stream:
        shape, dtype = _header(stream, where)
        begin = stream.tell()
    if dtype.hasobject or dtype.names is not None or dtype.kind == "V":
        raise DataError("arrays hold numbers or texts, not objects or records", got=str(dtype), where=where, fix=_FIX)
    size = math.prod(shape) * dtype.itemsize
    refuse_large(_POINTER * (shape[0] if shape else 0), path)  # even rows of no bytes take a place each
    if begin + size != entry.file_size:
        what = f"the array is not readable ({size} bytes by its header, {entry.file_size - begin} in the file)"
        raise DataError(what, where=where, fix="the file is truncated or corrupt: copy it again")
    return size


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError("an array of an unknown format", got=version, where=where, fix=_FIX)
    if version == (2, 0):  # NumPy would read as much as this number says before it checks it
        at = stream.tell()
        length = int.from_bytes(stream.read(4), "little")
        if length > _LONGEST:
            raise DataError("an array's header is too long", got=length, where=where, fix=_FIX)
        stream.seek(at)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream, max_header_size=_LONGEST)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise DataError("an array's shape is not of whole numbers", got=shape, where=where, fix=_FIX)
    return shape, dtype
