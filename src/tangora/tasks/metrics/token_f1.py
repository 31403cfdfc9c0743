"""Token F1: the overlap of words, as SQuAD counts it."""

from __future__ import annotations

import re
import string
from collections import Counter

from tangora.tasks.metrics._rows import TextScore

__all__ = ["METRIC", "TokenF1"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1(TextScore):
    """The mean over rows of ``2 |P ∩ R| / (|P| + |R|)``, in [0, 1], as in SQuAD's script (arXiv:1606.05250).

    P and R are the words of the text and its reference, each as often as it occurs: lower case, without ASCII
    punctuation, without ``a``, ``an`` and ``the``. A text without a word scores 0. Choose it for short answers that are
    spans of a text.

    >>> METRIC.score(["the Eiffel Tower in Paris"], [("Eiffel Tower", "Tower")])
    0.6666666666666666
    """

    name = "token_f1"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return F1 of one text and one reference."""
        one, other = _words(text), _words(reference)
        return 2 * (one & other).total() / max(one.total() + other.total(), 1)


def _words(text: str) -> Counter[str]:
    return Counter(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


METRIC = TokenF1()
