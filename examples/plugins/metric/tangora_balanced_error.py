"""The metric ``balanced_error``: the mean over classes of the share of their rows that are wrong; lower is better.

Choose it for unbalanced classes where errors are what one talks about. A recipe names it as any other metric::

    tasks:
      - {name: spam, metrics: [balanced_error, accuracy], ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tangora.tasks.contract import Answers


class BalancedError:
    """``mean over classes c of (wrong rows of c) / (rows of c)``, over the classes that targets have."""

    name = "balanced_error"
    takes: frozenset[Answers] = frozenset({"classes"})
    higher_is_better = False

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the mean error of the classes."""
        return float(self.bootstrap(predictions, targets, np.ones((1, len(targets)), dtype=np.int64))[0])

    def bootstrap(self, predictions: Sequence[Any], targets: Sequence[Any], counts: np.ndarray, /) -> np.ndarray:
        """Count rows and errors of every class in every resample."""
        wrong = np.array([p != t for p, t in zip(predictions, targets, strict=True)])
        of_class = np.array([[t == c for c in dict.fromkeys(targets)] for t in targets])  # rows, classes
        rows = counts @ of_class
        errors = counts @ (of_class & wrong[:, None])
        present = rows > 0  # a resample may have no row of a class
        return (errors / np.maximum(rows, 1)).sum(1) / present.sum(1)


METRIC = BalancedError()
