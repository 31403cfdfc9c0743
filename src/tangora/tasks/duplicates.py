"""Rows with equal inputs: they belong into one split, or a test asks what was learned by heart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tangora.config.tasks import TaskSettings
    from tangora.tasks.sources import Table

__all__ = ["input_columns", "input_groups"]

_COLUMNS = ("text", "text_pair", "image", "tokens", "messages")
_TEMPLATES = ("prompt",)


def input_columns(table: Table, config: TaskSettings) -> list[str]:
    """Return the columns of a task's inputs: those that its keys name, or else all but the label's."""
    texts = [str(text) for key in _TEMPLATES if (text := getattr(config, key, None))]
    filled = [
        field.split(".")[0].split("[")[0] for text in texts for _, field, _, _ in Formatter().parse(text) if field
    ]
    named = [name for key in _COLUMNS if isinstance(name := getattr(config, key, None), str)]
    found = [name for name in dict.fromkeys([*filled, *named]) if name in table.columns and name != config.label]
    return found or [name for name in table.columns if name != config.label] or table.columns


def input_groups(table: Table, config: TaskSettings) -> list[int]:
    """Return a number for each row: the same for rows with the same inputs.

    Texts that differ in case and spaces alone are the same; images are, if their bytes are.
    """
    numbers: dict[bytes, int] = {}
    names = input_columns(table, config)
    files = config.source.kind == "imagefolder"
    keys = (
        _hash(*(_of_file(row[name]) if files and isinstance(row[name], str) else _key(row[name]) for name in names))
        for row in table.rows(names)
    )
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _key(value: Any) -> bytes:
    """Return a hash of an input."""
    if isinstance(value, str):
        return _hash(b"text", " ".join(value.split()).casefold().encode(errors="surrogatepass"))
    if isinstance(value, bytes):
        return _hash(b"bytes", value)
    if isinstance(value, np.ndarray):
        return _hash(f"{value.dtype}{value.shape}".encode(), np.ascontiguousarray(value).tobytes())
    if isinstance(value, Mapping):
        if value.keys() == {"bytes", "path"}:  # an image
            return _key(value["bytes"]) if value["bytes"] is not None else _of_file(str(value["path"]))
        return _hash(b"map", *(_key(part) for pair in sorted(value.items()) for part in pair))
    if isinstance(value, list | tuple):
        return _hash(b"list", *map(_key, value))
    return _hash(type(value).__name__.encode(), repr(value).encode())


def _of_file(path: str) -> bytes:
    """Return a hash of a file's bytes, or of its name if it cannot be read: the row is refused later, by its number."""
    try:
        return _hash(b"bytes", Path(path).read_bytes())
    except (OSError, ValueError):
        return _hash(b"text", path.encode(errors="surrogatepass"))


def _hash(*parts: bytes) -> bytes:
    made = hashlib.sha256()
    for part in parts:
        made.update(len(part).to_bytes(8, "big") + part)
    return made.digest()
