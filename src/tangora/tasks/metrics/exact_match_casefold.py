"""Exact match that overlooks case, the amount of white space, and semicolons at the end."""

from __future__ import annotations

from tangora.tasks.metrics._rows import TextScore
from tangora.tasks.metrics._texts import spaced

__all__ = ["METRIC", "ExactMatchCasefold"]


class ExactMatchCasefold(TextScore):
    """The share of rows with a text equal to a reference apart from case and white space; in [0, 1].

    Every run of white space becomes one space, case is folded, and spaces and semicolons at the end are removed. Choose
    it for SQL and other languages in which case does not count.

    >>> METRIC.score(["select a;", "SELECT  B"], ["SELECT A", "select b"])
    1.0
    """

    name = "exact_match_casefold"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return 1 if both are equal apart from case, white space and semicolons at the end."""
        return float(_folded(text) == _folded(reference))


def _folded(text: str) -> str:
    return spaced(text).casefold().rstrip(" ;")


METRIC = ExactMatchCasefold()
