"""Numbers of bytes: for people, and the memory that this process may use."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tangora.errors import ArgumentError

__all__ = ["bytes_of", "memory_limit", "size_text"]

_SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's own limit


def bytes_of(size: int | str, where: str) -> int:
    """Return a size in bytes, given as such or as a text.

    Raises:
        ArgumentError: it is no size.

    >>> bytes_of("1.5GB", "shard_size")
    1500000000
    """
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)?\s*", size.upper())
    if match is None:
        raise ArgumentError("not a size", got=size, where=where, fix="such as 5GB or 500MB")
    return int(float(match[1]) * _SIZES[match[2] or ""])


def size_text(count: float) -> str:
    """Return a number of bytes with three digits and its unit.

    >>> size_text(256), size_text(1_234_567), size_text(5e12)
    ('256 bytes', '1.23 MB', '5 TB')
    """
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def memory_limit() -> int:
    """Return the bytes of memory of this machine, or of the container that the process is in; 16 GB if unknown.

    >>> memory_limit() > 0
    True
    """
    limits = []
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CGROUPS:
        try:
            limits.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit: "max", or another system
            continue
    return min((limit for limit in limits if limit > 0), default=16 * 10**9)
