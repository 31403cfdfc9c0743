"""Metrics that are a mean over rows of a score of one text, and the choice from several references."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import means

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["TextScore", "references"]


class TextScore:
    """The mean over rows of a score of the text against a reference, the best one if a row has several.

    An empty text scores 0. A metric defines its name and `of_text`.
    """

    name: str
    takes: frozenset[Answers] = frozenset({"text"})
    higher_is_better = True

    @abstractmethod
    def of_text(self, text: str, reference: str, /) -> float:
        """Return the score of a text that is not empty."""

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the mean over rows."""
        return float(self._of_rows(predictions, targets).mean())

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Return the mean of each resample."""
        return means(self._of_rows(predictions, targets), counts)

    def _of_rows(self, predictions: Sequence[str], targets: Sequence[Any]) -> Float[np.ndarray, " rows"]:
        best = [
            max(self.of_text(text, reference) for reference in references(target)) if text else 0.0
            for text, target in zip(predictions, targets, strict=True)
        ]
        return np.array(best, dtype=np.float64)


def references(target: Any) -> tuple[Any, ...]:
    """Return the correct answers to a row: those of a tuple, or the target itself."""
    return target if isinstance(target, tuple) else (target,)
