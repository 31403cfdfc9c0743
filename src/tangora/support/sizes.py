"""Numbers of bytes, for people."""

from __future__ import annotations

__all__ = ["size_text"]

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size_text(count: float) -> str:
    """Return a number of bytes with three digits and its unit.

    >>> size_text(256), size_text(1_234_567), size_text(5e12)
    ('256 bytes', '1.23 MB', '5 TB')
    """
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
