"""Parts of texts, and comparisons of sequences that take a machine word per 64 entries."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

__all__ = ["common", "distance", "spaced", "words"]

_WORD = re.compile(r"\w+")


def spaced(text: str) -> str:
    """Return the text with one space for every run of white space, and none around it."""
    return " ".join(text.split())


def words(text: str) -> list[str]:
    r"""Return the runs of letters, digits and ``_`` (``\w+``) of the casefolded text."""
    return _WORD.findall(text.casefold())


def common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence.

    A column of the dynamic program is one integer with a bit per entry of ``one`` (Hyyrö 2004).
    """
    places, full = _places(one), (1 << len(one)) - 1
    column = full
    for entry in other:
        met = column & places.get(entry, 0)
        column = ((column + met) | (column - met)) & full
    return len(one) - column.bit_count()


def distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return the Levenshtein distance: the fewest insertions, deletions and replacements of an entry.

    A column of the dynamic program is two integers: the places where it rises by 1, and where it falls (Hyyrö 2003).
    """
    if not one:
        return len(other)
    places, full = _places(one), (1 << len(one)) - 1
    rises, falls, steps = full, 0, len(one)
    for entry in other:
        met = places.get(entry, 0)
        level = ((((met & rises) + rises) ^ rises) | met | falls) & full
        right_rises, right_falls = (falls | ~(level | rises)) & full, level & rises
        last = len(one) - 1
        steps += (right_rises >> last & 1) - (right_falls >> last & 1)
        right_rises, right_falls = (right_rises << 1 | 1) & full, right_falls << 1 & full
        vertical = met | falls
        rises, falls = (right_falls | ~(vertical | right_rises)) & full, vertical & right_rises
    return steps


def _places(entries: Sequence[Hashable]) -> dict[Hashable, int]:
    """Return entry -> an integer with a bit for every place that it has."""
    places: dict[Hashable, int] = {}
    for place, entry in enumerate(entries):
        places[entry] = places.get(entry, 0) | 1 << place
    return places
