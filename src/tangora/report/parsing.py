"""Parse values from files that may have been edited or truncated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tangora.errors import FileError

__all__ = ["parsed"]

_T = TypeVar("_T")


def parsed(path: Path, line: object, parse: Callable[[Any], _T], raw: Any) -> _T:
    """Return ``parse(raw)``; errors name ``line`` as the location in the file, unless it is None.

    Raises:
        FileError: a value has the wrong type or shape.
    """
    try:
        return parse(raw)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as cause:
        where = path if line is None else f"{path}: {line}"
        raise FileError(f"a value cannot be right ({cause})", where=where, fix="write the file again") from cause
