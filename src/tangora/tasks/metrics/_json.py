"""Objects in texts, as pairs of key and value."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tangora.support.json_text import parse_json
from tangora.tasks.metrics._texts import spaced

__all__ = ["pairs"]


def pairs(text: str) -> Counter[tuple[str, str]] | None:
    """Return the keys and values of a JSON object, from the first ``{`` of a text to its last ``}``; None without one.

    Both have no case, and one space for every run of white space. A value that is no text counts as its JSON, with the
    keys in it sorted.
    """
    try:
        value = parse_json(text[text.find("{") : text.rfind("}") + 1])
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    return Counter((_folded(key), _folded(_text(one))) for key, one in value.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _folded(text: str) -> str:
    return spaced(text).casefold()
