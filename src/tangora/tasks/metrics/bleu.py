"""BLEU of a corpus, from sacrebleu's counts of n-grams."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.support.extras import require
from tangora.tasks.metrics._counts import in_blocks, once, sums
from tangora.tasks.metrics._rows import references

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sacrebleu.metrics.bleu import BLEU

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Bleu"]

_ORDERS = 4
_TOKEN = re.compile(r"\w+|[^\w\s]")


class Bleu:
    r"""BLEU-4 of all rows together, ``BP (p₁ p₂ p₃ p₄)^¼``, in [0, 1] (Papineni 2002, aclanthology.org/P02-1040).

    pₙ is the share of n-grams that a reference of their row has, each at most as often as in the reference that has it
    most. BP is ``min(1, exp(1 - r / c))`` for c predicted tokens and r tokens of references: in each row those of the
    reference whose length is nearest, the shorter one if two are as near. There is no smoothing: the score is 0 if an
    order has no match. Tokens are ``\w+|[^\w\s]`` of the casefolded text, in every language; sacrebleu counts them.
    Choose it for translations and for texts about data.

    >>> two = ("the cat sat on a mat", "the cat sits on the mat")
    >>> round(METRIC.score(["the cat sat on the mat"], [two]), 4)  # (1 · 1 · 3/4 · 1/3)^¼
    0.7071
    """

    name = "bleu"
    takes: frozenset[Answers] = frozenset({"text"})
    higher_is_better = True
    extra = "lm"

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return BLEU of the corpus."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum lengths, n-grams and matches over each resample."""
        statistics = np.array([_counted(p, references(t)) for p, t in zip(predictions, targets, strict=True)])
        return in_blocks(lambda block: _bleu(np.stack([sums(column, block) for column in statistics.T])), counts)


@cache
def _sacrebleu() -> BLEU:
    require("lm", purpose="the metric bleu")
    from sacrebleu.metrics.bleu import BLEU  # deferred: only generated texts are scored by it

    # The effective order is of the score of one row, which is not used; without it, sacrebleu warns about every row.
    return BLEU(tokenize="none", smooth_method="none", force=True, max_ngram_order=_ORDERS, effective_order=True)


def _counted(text: str, correct: Sequence[str]) -> list[int]:
    """Return the length of a text and its nearest reference, then matches by order, then n-grams by order."""
    one = _sacrebleu().sentence_score(_tokens(text), [_tokens(reference) for reference in correct])
    return [one.sys_len, one.ref_len, *one.counts, *one.totals]


def _tokens(text: str) -> str:
    return " ".join(_TOKEN.findall(text.casefold()))


def _bleu(statistics: Int[np.ndarray, "statistics resamples"]) -> Float[np.ndarray, " resamples"]:
    length, nearest = statistics[:2]
    matches, ngrams = statistics[2 : 2 + _ORDERS], statistics[2 + _ORDERS :]
    defined = (matches > 0).all(0)
    logs = np.log(np.where(defined, matches, 1) / np.where(defined, ngrams, 1)).mean(0)
    brevity = np.minimum(0.0, 1 - nearest / np.maximum(length, 1))
    scores: Float[np.ndarray, " resamples"] = np.where(defined, np.exp(brevity + logs), 0.0)
    return scores


METRIC = Bleu()
