"""How values show themselves: one line for `repr`, a small table in notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["MOST", "decimal", "html_table", "one_line", "percent"]

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


def decimal(value: float, places: int = 3) -> str:
    """Return a score as text: with decimals, or if it is large as a whole number, or as one with an exponent.

    >>> decimal(0.81234), decimal(12345.6), decimal(1.234e9)
    ('0.812', '12,346', '1.23e+09')
    """
    if not math.isfinite(value) or abs(value) < 1000:
        return f"{value:.{places}f}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"


def percent(count: int, of: int) -> str:
    """Return a share in percent, which is 0 or 100 only if it is exactly that.

    >>> [percent(n, 1000) for n in (0, 1, 15, 500, 999, 1000)]
    ['0 %', '0.1 %', '1.5 %', '50 %', '99.9 %', '100 %']
    """
    percent = 100 * count / of if of else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    whole = percent == int(percent) or 2 <= percent <= 98
    return f"{percent:.0f} %" if whole else f"{percent:.1f} %"


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook; every text is escaped.

    >>> html_table("a < b", ["split", "rows"], [["train", 3]]).count("<td")
    2
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<b>{escape(title)}</b><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
