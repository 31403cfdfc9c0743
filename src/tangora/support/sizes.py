"""Numbers of bytes: for people, and the memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["memory_limit", "size_text"]

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's own limit


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
