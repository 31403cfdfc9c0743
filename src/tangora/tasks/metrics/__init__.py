"""The built-in metrics, one module each, and `score`, which checks its input before it calls one.

To add a metric, implement `tangora.tasks.contract.Metric` and announce it by an entry point of the group
``tangora.metrics``; `tangora.testing.check_metric` checks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.errors import ArgumentError
from tangora.support.seams import METRICS

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Metric

__all__ = ["METRICS", "bootstrap", "direction", "resampled", "score"]


def score(metric: str, predictions: Sequence[Any] | np.ndarray, targets: Sequence[Any] | np.ndarray) -> float:
    """Return the metric of ``predictions`` against ``targets``, row by row.

    Texts are compared without surrounding white space.

    Raises:
        PluginError: there is no such metric.
        ArgumentError: there are no rows, the numbers of rows differ, or a row has an empty tuple of references.

    >>> score("accuracy", [0, 1, 1], [0, 1, 0])
    0.6666666666666666
    >>> score("spearman", ["1.0", "2.5", "word"], ["0.9", "3.0", "0.1"])
    1.0
    """
    chosen: Metric = METRICS.get(metric)
    return float(chosen.score(*_checked(metric, predictions, targets)))


def direction(metrics: Iterable[str]) -> int:
    """Return 1 if more is better of a mean of scores by these metrics, -1 if less is, and 0 if it ranks nothing.

    Scores of which more is better are 1 at most. Those of which less is better have no bound (a perplexity can be a
    thousand times an error), so that only one metric has a mean. A metric that is not installed counts as the former.

    >>> direction(["accuracy", "macro_f1"]), direction(["perplexity"]), direction(["perplexity", "accuracy"])
    (1, -1, 0)
    """
    names = set(metrics)
    lower = [name for name in names if name in METRICS and not METRICS.get(name).higher_is_better]
    return 1 if not lower else -1 if len(names) == 1 else 0


def bootstrap(
    metric: str,
    predictions: Sequence[Any] | np.ndarray,
    targets: Sequence[Any] | np.ndarray,
    counts: Int[np.ndarray, "resamples rows"],
) -> Float[np.ndarray, " resamples"]:
    """Return the metric of every resample of the rows; row ``i`` is ``counts[k, i]`` times in resample ``k``.

    Raises:
        PluginError: there is no such metric.
        ArgumentError: there are no rows, the numbers of rows differ, or a row has an empty tuple of references.

    >>> bootstrap("accuracy", [0, 1, 1], [0, 1, 0], np.array([[1, 1, 1], [0, 1, 2]])).round(3).tolist()
    [0.667, 0.333]
    """
    chosen: Metric = METRICS.get(metric)
    scores = chosen.bootstrap(*_checked(metric, predictions, targets), counts)
    return np.asarray(scores, dtype=np.float64)


def resampled(
    metric: Metric, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    """Implement `Metric.bootstrap` by calling `Metric.score` for each resample, for a metric that has no faster way."""
    rows = np.arange(len(targets))
    scores = []
    for count in counts:
        picked = np.repeat(rows, count).tolist()
        scores.append(metric.score([predictions[i] for i in picked], [targets[i] for i in picked]))
    return np.array(scores, dtype=np.float64)


def _checked(
    metric: str, predictions: Sequence[Any] | np.ndarray, targets: Sequence[Any] | np.ndarray
) -> tuple[list[Any], list[Any]]:
    if len(predictions) != len(targets) or not len(targets):
        got = f"{len(predictions)} predictions, {len(targets)} targets"
        raise ArgumentError("a metric needs one prediction for each of at least one target", got=got, where=metric)
    expected = _plain(targets)
    if (
        empty := next((row for row, target in enumerate(expected) if isinstance(target, tuple) and not target), None)
    ) is not None:
        raise ArgumentError("a row has no reference", got=f"() as target {empty}", where=metric)
    return _plain(predictions), expected


def _plain(values: Sequence[Any] | np.ndarray) -> list[Any]:
    """Return Python values, with texts and references stripped."""
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return [_stripped(value) for value in listed]


def _stripped(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_stripped(one) for one in value)
    return value.strip() if isinstance(value, str) else value
