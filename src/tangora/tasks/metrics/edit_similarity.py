"""Edit similarity: how few words have to be changed."""

from __future__ import annotations

from tangora.tasks.metrics._rows import TextScore
from tangora.tasks.metrics._texts import distance

__all__ = ["METRIC", "EditSimilarity"]


class EditSimilarity(TextScore):
    """The mean over rows of ``1 - d / max(n, m)``, in [0, 1].

    d is the Levenshtein distance between the n words of the text and the m words of its reference: the fewest
    insertions, deletions and replacements of a word, each of which counts 1. Words are what white space separates in
    the casefolded text. Choose it for sequences of commands or actions, of which a part can be right.

    >>> METRIC.score(["walk left run"], ["walk right run run"])
    0.5
    """

    name = "edit_similarity"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return the similarity of one text and one reference."""
        one, other = text.casefold().split(), reference.casefold().split()
        return 1 - distance(one, other) / max(len(one), len(other), 1)


METRIC = EditSimilarity()
