"""chrF: F of character n-grams, by sacrebleu."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tangora.support.extras import require
from tangora.tasks.metrics._rows import TextScore

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

__all__ = ["METRIC", "Chrf"]


class Chrf(TextScore):
    """The mean over rows of chrF2, ``5 P R / (4 P + R)``, in [0, 1] (Popović 2015, aclanthology.org/W15-3049).

    P and R are precision and recall of character n-grams, white space removed and case kept, each averaged over the
    orders 1 to 6 of which both text and reference have n-grams. A row's score is that of sacrebleu's ``CHRF``; for a
    corpus it adds up the counts of all rows instead, so that long rows count more. Choose it for translations into
    languages with many forms of a word.

    >>> round(METRIC.score(["ab"], ["abcd"]), 4)  # P = 1, R = (2/4 + 1/3) / 2
    0.4717
    """

    name = "chrf"
    extra = "lm"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return chrF2 of one text and one reference."""
        return float(_sacrebleu().sentence_score(text, [reference]).score) / 100


@cache
def _sacrebleu() -> CHRF:
    require("lm", purpose="the metric chrf")
    from sacrebleu.metrics.chrf import CHRF  # deferred: only generated texts are scored by it

    return CHRF(char_order=6, word_order=0, beta=2)


METRIC = Chrf()
