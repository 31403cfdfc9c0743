"""Read YAML 1.2 safely, and write it so that readers of YAML 1.1 see the same values.

In 1.2 ``no`` is a string and ``1e-4`` a number; in 1.1, which most other readers follow, it is the other way round. A
document that begins with ``%YAML 1.1`` is read by the rules of 1.1.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.scanner import Scanner

from tangora.support.json_text import DEEPEST, refuse_deep

__all__ = ["dump", "parse"]

_LARGEST = 250_000  # characters of a document; reading takes a second for every 10,000
_MOST = 100_000  # values in it, those of an alias counted at every use
_TRUTHS = frozenset({"y", "yes", "n", "no", "on", "off"})  # booleans in YAML 1.1, strings in 1.2


def parse(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        ValueError: it is not YAML, has a duplicate key, or is too large or too deep, itself or through its aliases.

    >>> parse("[no, 1e-4, 5.e3, e4, 2e]")
    ['no', 0.0001, 5000.0, 'e4', '2e']
    """
    if len(text) > _LARGEST:
        raise ValueError(f"a document of more than {_LARGEST:,} characters")
    try:
        reader = YAML(typ="safe", pure=True)
        reader.Scanner = _Scanner
        value = reader.load(text)
    except YAMLError as cause:
        raise ValueError(" ".join(str(cause).split())) from cause
    except RecursionError as cause:
        raise ValueError("lists or mappings too deep in each other") from cause
    except Exception as cause:  # a value that its tag cannot have, such as `!!bool may`: any error of a constructor
        raise ValueError(f"a value that its tag cannot have ({type(cause).__name__}: {cause})") from cause
    _count(value)
    refuse_deep(value)  # after the count, which bounds what aliases expand to
    return value


def dump(value: Any) -> str:
    """Return a value as a YAML document in block style, keys in their own order.

    >>> dump({"labels": ["no", "1e3"], "rate": 1e-5})
    "labels:\\n- 'no'\\n- '1e3'\\nrate: 1e-05\\n"
    """
    writer: Any = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style, writer.allow_unicode, writer.width = False, True, 110
    writer.sort_base_mapping_type_on_output = False
    buffer = io.StringIO()
    writer.dump(value, buffer)
    return buffer.getvalue()


def _count(value: Any) -> None:
    """Refuse a document if its aliases expand to too many values, or to themselves."""
    waiting, seen = [value], 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if seen > _MOST:
            raise ValueError(f"more than {_MOST:,} values, those of aliases included")
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


class _Scanner(Scanner):
    """Refuses deep lists at once: the scanner's time grows with the square of their depth."""

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:
        if len(self.flow_context) >= DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass, to_push)


class _Representer(SafeRepresenter):
    """Quotes strings that YAML 1.1 reads as booleans."""


def _text(representer: SafeRepresenter, text: str) -> Any:
    style = "'" if text.lower() in _TRUTHS else None
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _text)
