"""Markdown of values that users chose: everything in them is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["as_code", "as_table", "as_text"]


def as_code(value: object) -> str:
    """Return a value as inline code, in one line.

    >>> as_code("a`b|c")
    "`a'b¦c`"
    """
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', '¦')}`"


def as_text(value: object) -> str:
    r"""Return a value as text in which no Markdown or HTML takes effect, in one line.

    >>> print(as_text("a * b"))
    a \* b
    """
    return re.sub(r"([\\`*_{}\[\]<>|#&$~])", r"\\\1", " ".join(str(value).split()))


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already.

    >>> print(as_table(("a", "b"), [("1", "2")]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
