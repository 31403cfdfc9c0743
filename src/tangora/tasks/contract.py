"""The contracts of what a task consists of. A third party implements them; nothing here imports torch.

A **metric** compares predictions with targets::

    predictions, targets ── score ──> a number
    predictions, targets, counts of resampled rows ── bootstrap ──> a number for each resample
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

__all__ = ["Answers", "Metric"]

Answers: TypeAlias = Literal["classes", "text", "number"]
"""What a model answers a row with: the number of a class, a text, or a number."""


@runtime_checkable
class Metric(Protocol):
    """A score of predictions against targets, one of each per row.

    Both come as plain Python values, of one kind of `Answers`: class numbers in [0, classes), texts without
    surrounding white space, or numbers. There is at least one row, and as many predictions as targets; `score` in
    `tangora.tasks.metrics` refuses anything else before a metric is called.

    A metric is a value without state: equal arguments give equal results, and the arguments are not changed. The order
    of the rows does not matter.

    Attributes:
        name: what recipes and ``scores.csv`` call it; letters, digits and ``_``.
        takes: the kinds of answers that it can compare; a recipe with another kind is refused.
        higher_is_better: whether a model with a higher score is the better one. Where it is false, 0 is a perfect
            score and none is below, as for an error rate: see `tangora.evaluation.results.kept`.
    """

    name: str
    takes: frozenset[Answers]
    higher_is_better: bool

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the score; NaN only if it is undefined for these rows."""
        ...

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, "resamples"]:
        """Return the score of every resample; row ``i`` is ``counts[k, i]`` times in resample ``k``.

        The result is `score` of the repeated rows, up to rounding. A run asks for thousands of resamples of every
        prediction, so compute it from sums over rows (a confusion matrix, the number of right rows) rather than by
        calling `score`. Where there is no such way, return ``tangora.tasks.metrics.resampled(self, ...)``.
        """
        ...
