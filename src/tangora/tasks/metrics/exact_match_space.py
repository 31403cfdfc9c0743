"""Exact match that overlooks the amount of white space."""

from __future__ import annotations

from tangora.tasks.metrics._rows import TextScore
from tangora.tasks.metrics._texts import spaced

__all__ = ["METRIC", "ExactMatchSpace"]


class ExactMatchSpace(TextScore):
    """The share of rows with a text equal to a reference once every run of white space is one space; in [0, 1].

    Choose it for code and queries, in which case counts and layout does not.

    >>> METRIC.score(["SELECT  a", "select b"], ["SELECT a", "SELECT b"])
    0.5
    """

    name = "exact_match_space"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return 1 if both are equal apart from the amount of white space."""
        return float(spaced(text) == spaced(reference))


METRIC = ExactMatchSpace()
