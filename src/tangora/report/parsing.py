"""Values out of files that a person may have edited, or cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tangora.errors import FileError

__all__ = ["parsed"]

_T = TypeVar("_T")


def parsed(path: Path, line: object, parse: Callable[[Any], _T], raw: Any) -> _T:
    """``parse(raw)``; ``line`` says where in the file, None where it is the whole.

    Raises:
        FileError: a value has another type or shape than it must have.
    """
    try:
        return parse(raw)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as cause:
        where = path if line is None else f"{path}: {line}"
        raise FileError(f"a value cannot be right ({cause})", where=where, fix="write the file again") from cause
