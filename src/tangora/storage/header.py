"""The content of a safetensors file from its header alone: names, shapes, dtypes and offsets, all of them checked.

    8 bytes         N, the header's length, little-endian
    N bytes         JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {...}}
    the rest        the tensors' bytes, side by side, without gaps

No byte of a tensor is read here, nothing larger than the header is allocated, and no header is larger than its file.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tangora.errors import FileError

__all__ = ["FLOATS", "ITEMSIZE", "Stored", "read_file_metadata", "read_header", "write_header"]

FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""The dtypes that can be fused -> their names in torch."""

ITEMSIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_LONGEST = 100_000_000  # the format's own limit of a header
_MOST, _DIMENSIONS = 1_000_000, 64  # tensors of a file, and sizes in a shape: torch's limit
_AGAIN = "the file is truncated or corrupt: copy it again"


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: ``size`` bytes from ``start``, counted from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    @property
    def entries(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """Read the tensors' entries in the header of a safetensors file, in the order of their bytes.

    Raises:
        FileError: the file is missing, or does not match its header.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(_LONGEST, total - 8):
                raise FileError("not a safetensors file: the header's length is wrong", where=path, fix=_AGAIN)
            text = file.read(length)
    except OSError as cause:
        raise FileError(f"cannot be read ({cause.strerror})", where=path, fix="check the path") from cause
    entries = [_entry(n, value, path, 8 + length) for n, value in _parsed(text, path).items() if n != "__metadata__"]
    entries.sort(key=lambda entry: (entry.start, entry.size))
    at = 8 + length
    for entry in entries:
        if entry.start != at:
            rule = "tensors overlap" if entry.start < at else "bytes belong to no tensor"
            raise FileError(rule, where=f"{entry.name} in {path}", fix=_AGAIN)
        at += entry.size
    if at != total:
        got = f"{total} bytes, {at} by its header"
        raise FileError("the file's size is wrong", got=got, where=path, fix=_AGAIN)
    return {entry.name: entry for entry in entries}


def read_file_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file, which `read_header` has checked.

    Raises:
        FileError: it is not a mapping of texts.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        held = json.loads(file.read(length)).get("__metadata__") or {}
    if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
        raise FileError("the file's metadata are not texts", where=path, fix="save it again with safetensors")
    return held


def write_header(entries: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the first bytes of a file that holds tensors of these names, dtypes and shapes, in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in entries:
        size = math.prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
    return struct.pack("<Q", len(text)) + text


def _parsed(text: bytes, path: Path) -> Mapping[str, Any]:
    if (count := text.count(b"data_offsets")) > _MOST:  # a thousand bytes of memory for each
        raise FileError(f"a header of more than {_MOST:,} tensors", got=count, where=path, fix=_AGAIN)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as cause:
        raise FileError(f"the header is not JSON ({str(cause)[:100]})", where=path, fix=_AGAIN) from cause
    if not isinstance(header, dict):
        raise FileError("the header is not an object", got=type(header).__name__, where=path, fix=_AGAIN)
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a duplicate name")
    return entries


def _entry(name: str, value: Any, path: Path, begin: int) -> Stored:
    where = f"{name[:200]} in {path}"
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        raise FileError("a tensor without dtype, shape or data_offsets", where=where, fix=_AGAIN)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        fix = "convert the checkpoint to bfloat16, float16 or float32"
        if str(dtype).startswith(("F4", "F6_", "F8_")):
            fix = "the weights are quantized: give the same model in full precision"
        raise FileError("a dtype that cannot be read", got=dtype, where=where, fix=fix)
    if (
        not _are_sizes(shape)
        or len(shape) > _DIMENSIONS
        or not _are_sizes(offsets)
        or len(offsets) != 2
        or offsets[0] > offsets[1]
    ):
        raise FileError("shape or data_offsets are not whole numbers in order", where=where, fix=_AGAIN)
    size = offsets[1] - offsets[0]
    if math.prod(shape) * ITEMSIZE[dtype] != size:
        what = f"{dtype} of shape {shape} does not fill {size} bytes"
        raise FileError(what, where=where, fix=_AGAIN)
    return Stored(name, dtype, tuple(shape), path, begin + offsets[0], size)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)
