"""The metrics of a task: higher is better, 1 is perfect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tangora.errors import DataError
from tangora.support.validation import did_you_mean

__all__ = ["METRICS", "score"]

_Values = Sequence[Any]


def score(metric: str, predictions: _Values | np.ndarray, targets: _Values | np.ndarray) -> float:
    """The metric of ``predictions`` against ``targets``, row by row.

    - ``accuracy``: share of equal rows. ``exact_match``: the same, the name used for texts.
    - ``macro_f1``: mean over classes of F1, a class never predicted counting 0 (scikit-learn).
    - ``matthews``: Matthews correlation coefficient, in [-1, 1] (scikit-learn); for unbalanced binary tasks.
    - ``spearman``: rank correlation (scipy) of texts read as numbers; a text that is no number counts as 0, and so
      does the correlation with a constant.

    Texts are compared without surrounding white space.

    Raises:
        DataError: unknown metric, no rows, or numbers of rows that differ.

    >>> score("accuracy", [0, 1, 1], [0, 1, 0])
    0.6666666666666666
    >>> score("spearman", ["1.0", "2.5", "word"], ["0.9", "3.0", "0.1"])
    1.0
    """
    if metric not in METRICS:
        raise DataError("unknown metric", got=metric, where="metric", fix=did_you_mean(metric, list(METRICS)))
    if len(predictions) != len(targets) or not len(targets):
        raise DataError(
            "a metric needs one prediction for each of at least one target",
            got=f"{len(predictions)} predictions, {len(targets)} targets",
            where=metric,
        )
    return METRICS[metric](_plain(predictions), _plain(targets))


def _plain(values: _Values | np.ndarray) -> list[Any]:
    """Python values, texts stripped."""
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return [v.strip() if isinstance(v, str) else v for v in listed]


def _accuracy(predictions: list[Any], targets: list[Any]) -> float:
    # scikit-learn's accuracy_score checks its input for half a millisecond; bootstraps call this for each row
    return sum(bool(p == t) for p, t in zip(predictions, targets, strict=True)) / len(targets)


def _macro_f1(predictions: list[Any], targets: list[Any]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predictions, average="macro", zero_division=0))


def _matthews(predictions: list[Any], targets: list[Any]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(targets, predictions))


def _spearman(predictions: list[Any], targets: list[Any]) -> float:
    from scipy.stats import spearmanr

    x, y = (np.array([_number(v) for v in values]) for values in (predictions, targets))
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(x, y).statistic)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if np.isfinite(number) else 0.0


METRICS: dict[str, Callable[[list[Any], list[Any]], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "spearman": _spearman,
    "exact_match": _accuracy,
}
