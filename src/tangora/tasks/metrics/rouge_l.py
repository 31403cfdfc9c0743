"""ROUGE-L: F1 of the longest common subsequence of words."""

from __future__ import annotations

from tangora.tasks.metrics._rows import TextScore
from tangora.tasks.metrics._texts import common, words

__all__ = ["METRIC", "RougeL"]


class RougeL(TextScore):
    r"""The mean over rows of ``2 LCS / (n + m)``, in [0, 1] (Lin 2004, aclanthology.org/W04-1013, section 3).

    LCS is the length of the longest common subsequence of the n words of the text and the m words of its reference.
    This is the paper's F with β = 1. Words are ``\w+`` of the casefolded text; those of the package rouge-score are
    runs of ``a`` to ``z`` and digits, which many languages do not have. Choose it for summaries; a text that copies its
    input scores high.

    >>> METRIC.score(["the cat sat on the mat"], ["the cat is on the mat"])
    0.8333333333333334
    """

    name = "rouge_l"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return F1 of one text and one reference; 0 if neither has a word."""
        one, other = words(text), words(reference)
        return 2 * common(one, other) / max(len(one) + len(other), 1)


METRIC = RougeL()
