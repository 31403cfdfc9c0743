"""Exact match that overlooks everything but letters and digits."""

from __future__ import annotations

import re

from tangora.tasks.metrics._rows import TextScore

__all__ = ["METRIC", "ExactMatchWords"]

_BETWEEN = re.compile(r"[\W_]+")


class ExactMatchWords(TextScore):
    """The share of rows with the letters and digits of a reference, in the same words; in [0, 1].

    Case is folded, and every run of other characters becomes one space. Choose it for questions and short answers, of
    which the punctuation does not matter.

    >>> METRIC.score(["Who wrote it?", "in 1905"], ["who wrote it", "in 1915"])
    0.5
    """

    name = "exact_match_words"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return 1 if both have equal words."""
        return float(_plain(text) == _plain(reference))


def _plain(text: str) -> str:
    return _BETWEEN.sub(" ", text.casefold()).strip()


METRIC = ExactMatchWords()
