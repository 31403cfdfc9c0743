"""Parse JSON of files that others wrote: any text is a value of bounded depth, or a `ValueError`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["DEEPEST", "parse_json", "refuse_deep"]

DEEPEST = 64
"""The largest number of lists and mappings in each other. Files of adapters, models and runs have fewer than ten.

Python's own limit depends on the version and on the depth of the call, and what is read just below it fails later: in
`repr`, in a digest, or when it is written again.
"""


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: it is not JSON, not UTF-8, or too deep.

    >>> parse_json('{"r": [8, 1e-3]}')
    {'r': [8, 0.001]}
    """
    try:
        value = json.loads(text)
    except RecursionError as cause:
        raise ValueError(_TOO_DEEP) from cause
    refuse_deep(value)
    return value


def refuse_deep(value: Any) -> None:
    """Raise `ValueError` for a value of more than `DEEPEST` lists and mappings in each other.

    >>> refuse_deep([{"a": [1]}])
    """
    level = [value]
    for _ in range(DEEPEST):
        level = [one for outer in level for one in _members(outer) if isinstance(one, (Mapping, list))]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"more than {DEEPEST} lists or mappings in each other"


def _members(value: Any) -> Iterator[Any]:
    return iter(value.values()) if isinstance(value, Mapping) else iter(value) if isinstance(value, list) else iter(())
