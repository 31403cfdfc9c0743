"""How values show themselves: one line for `repr`, a small table in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["MOST", "html_table", "one_line"]

MOST = 200
"""The longest `repr` of a public value."""


def one_line(kind: str, *facts: object) -> str:
    """Return ``Kind(fact, fact)`` in one line of at most `MOST` characters; facts that are None or empty are left out.

    >>> one_line("Task", "'sst2'", None, "2 classes")
    "Task('sst2', 2 classes)"
    """
    text = f"{kind}({', '.join(str(fact) for fact in facts if fact not in (None, ''))})"
    text = " ".join(text.split())
    return text if len(text) <= MOST else text[: MOST - 3] + " …)"


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook; every text is escaped.

    >>> html_table("a < b", ["split", "rows"], [["train", 3]]).count("<td")
    2
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<b>{escape(title)}</b><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
