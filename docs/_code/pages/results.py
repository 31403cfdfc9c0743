"""What a method scored in the studies of docs/: the rows of their tables with all seven tasks fused."""

from __future__ import annotations

import re
from pathlib import Path

from pages.prose import table

__all__ = ["section"]

_DOCS = Path(__file__).parents[2]
_STUDIES = ("text7", "tangent", "gen7")


def section(method: str) -> str:
    """Return the section of a method's page; empty if no study has it."""
    rows = [row for study in _STUDIES for row in _rows(study) if row[2] == f"`{method}`"]
    if not rows:
        return ""
    header = ("study", "mode", "method", "space", "score / kept of seven tasks", "95 % interval of the score")
    note = "One seed each. Means over the seven tasks; *kept* is the share of the same mode's experts."
    return f"## How it did\n\n{table(header, rows)}\n{note}"


def _rows(study: str) -> list[tuple[str, ...]]:
    text = (_DOCS / f"{study}.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", text, re.DOTALL)
    lines = [line.strip("| ").split(" | ") for line in (found[1] if found else "").splitlines() if line.startswith("|")]
    if not lines:
        return []
    places = [lines[0].index(name) for name in ("mode", "method", "space", "n = 7", "95 % at n = 7")]
    cells = ([line[place] for place in places] for line in lines[2:])
    return [(f"[{study}](../{study}.md)", mode, f"`{method}`", *rest) for mode, method, *rest in cells]
