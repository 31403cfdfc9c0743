"""Regular expressions from files: refuse those whose matching can take exponential time.

Python's engine tries every way to match. A repeat inside a repeat, or one over alternatives, has exponentially many
ways (``(a+)+``, ``(a|a)*``), and many repeats in a row have polynomially many. Patterns of layers need neither.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

# The parser of `re`, which has no public name; in Python 3.10 it is a module of its own.
_in_re = sys.version_info >= (3, 11)
parser: Any = importlib.import_module("re._parser" if _in_re else "sre_parse")
codes: Any = importlib.import_module("re._constants" if _in_re else "sre_constants")

__all__ = ["check_pattern"]

_LONGEST = 2000  # characters
_MOST = 5  # repeats of unlimited length


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that is not a regular expression, or whose matching may take exponential time.

    Raises:
        ValueError: with the reason.

    >>> check_pattern(r".*layers\\.(0|1)\\..*proj")
    >>> check_pattern("(a+)+")
    Traceback (most recent call last):
    ValueError: a repeat inside a repeat can take exponential time
    """
    if len(pattern) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST:,} characters")
    try:
        re.compile(pattern)
        tree = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as cause:
        raise ValueError(str(cause)) from cause
    open_ended = 0
    for code, argument in _nodes(tree):
        if code in _REPEATS:
            _, most, body = argument
            open_ended += most is codes.MAXREPEAT
            if most > 1 and any(_varies(*node) for node in _nodes(body)):
                raise ValueError("a repeat inside a repeat can take exponential time")
    if open_ended > _MOST:
        raise ValueError(f"more than {_MOST} repeats of unlimited length can take very long")


_REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT, *([codes.POSSESSIVE_REPEAT] if _in_re else [])}


def _varies(code: Any, argument: Any) -> bool:
    """Return whether a part can match in several ways: alternatives, or a repeat of no fixed number."""
    return code is codes.BRANCH or (code in _REPEATS and argument[0] != argument[1])


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Return every part of a parsed pattern, those inside of others too."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, parser.SubPattern):
            for code, argument in part:
                yield code, argument
                waiting.append(argument)
        elif isinstance(part, (tuple, list)):
            waiting += [inner for inner in part if isinstance(inner, (parser.SubPattern, tuple, list))]
