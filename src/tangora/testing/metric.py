"""`check_metric`: the promises of `tangora.tasks.contract.Metric`, on rows that it draws itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np

from tangora.tasks.contract import MAPS, Answers, Metric
from tangora.tasks.maps import UNCOUNTED
from tangora.tasks.metrics import resampled

__all__ = ["check_metric"]

_CLOSE = 1e-9
_ROWS, _RESAMPLES = 23, 8
_SENTENCE = 'The answer is {{"value": {}, "unit": "m"}}'


def check_metric(metric: Metric) -> None:
    """Check the promises of a metric, for every kind of answers that it takes.

    Raises:
        AssertionError: says which promise is broken, and by which rows.

    >>> from tangora.tasks import METRICS
    >>> check_metric(METRICS.get("macro_f1"))
    """
    _check_declarations(metric)
    for kind in sorted(metric.takes):
        for seed in range(3):
            predictions, targets = _drawn(kind, seed)
            _check_score(metric, kind, predictions, targets)
            _check_bootstrap(metric, kind, predictions, targets, seed)
            if kind == "text":
                _check_references(metric, predictions, targets)
                several = [tuple(targets[row - k] for k in range(row % 2, 1 + row % 4)) for row in range(_ROWS)]
                _check_score(metric, kind, predictions, several)
                _check_bootstrap(metric, kind, predictions, several, seed)


def _check_declarations(metric: Metric) -> None:
    assert isinstance(metric, Metric), f"{metric!r} lacks a name of tangora.tasks.contract.Metric"
    assert metric.name.isidentifier(), f"name must consist of letters, digits and _, got {metric.name!r}"
    kinds = set(get_args(Answers))
    assert metric.takes, f"{metric.name} takes no kind of answers; give some of {sorted(kinds)}"
    assert set(metric.takes) <= kinds, f"{metric.name} takes {sorted(metric.takes)}; kinds are {sorted(kinds)}"
    assert isinstance(metric.higher_is_better, bool), f"{metric.name}: higher_is_better must be True or False"


def _drawn(kind: str, seed: int) -> tuple[list[Any], list[Any]]:
    """Draw predictions and targets; about half of the predictions are right."""
    draw = np.random.default_rng([seed, len(kind)])
    if kind == "likelihood":
        tokens = draw.integers(1, 20, _ROWS)
        nats = draw.gamma(2.0, 1.0, _ROWS) * tokens
        return [[n, t] for n, t in zip(nats.tolist(), tokens.tolist(), strict=True)], (4 * tokens).tolist()
    if kind in ("labels", "tags"):
        return _drawn_lists(kind, draw)
    if kind in MAPS:
        return _drawn_maps(kind, draw)
    targets = draw.integers(0, 2 + seed, _ROWS)
    predictions = np.where(draw.random(_ROWS) < 0.5, targets, draw.integers(0, 2 + seed, _ROWS))
    if kind == "number":
        return (predictions + draw.normal(0, 0.1, _ROWS)).tolist(), targets.astype(float).tolist()
    if kind == "text":
        written = _SENTENCE if seed == 0 else "{}.5"  # a number is the whole text, or in an object in a sentence
        return ["", *map(written.format, predictions[1:])], [written.format(target) for target in targets]
    return predictions.tolist(), targets.tolist()


def _drawn_lists(kind: str, draw: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Draw rows of 0 to 4 labels, or of 1 to 6 tags; about half of each is predicted."""
    if kind == "labels":
        actual, kept, added = (
            draw.random((_ROWS, 4)) < 0.4,
            draw.random((_ROWS, 4)) < 0.7,
            draw.random((_ROWS, 4)) < 0.2,
        )
        predicted = actual & kept | added
        return [np.flatnonzero(row).tolist() for row in predicted], [np.flatnonzero(row).tolist() for row in actual]
    names = np.array(["O", "B-a", "I-a", "B-b", "I-b"])
    targets = [names[draw.integers(0, len(names), size)] for size in draw.integers(1, 7, _ROWS)]
    changed = [np.where(draw.random(len(t)) < 0.7, t, draw.permutation(t)) for t in targets]
    return [row.tolist() for row in changed], [row.tolist() for row in targets]


def _drawn_maps(kind: str, draw: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Draw maps of 4 x 5 pixels; about a tenth of them does not count."""
    shape = (_ROWS, 4, 5)
    actual, uncounted = draw.integers(0, 2 if kind == "binary_map" else 3, shape), draw.random(shape) < 0.1
    if kind == "number_map":
        numbers = actual + draw.normal(0, 0.1, shape)
        return list(numbers.astype(np.float32)), list(np.where(uncounted, np.nan, actual).astype(np.float32))
    predicted = np.where(draw.random(shape) < 0.5, actual, draw.integers(0, 3, shape))
    if kind == "binary_map":
        predicted = 100 * actual + draw.integers(0, 150, shape)
    return list(predicted.astype(np.uint8)), list(np.where(uncounted, UNCOUNTED, actual).astype(np.uint8))


def _perfect(kind: str, predictions: list[Any], targets: list[Any]) -> list[Any]:
    """Return the best possible predictions; of several references the last."""
    if kind == "likelihood":
        return [[0.0, tokens] for _, tokens in predictions]
    if kind == "binary_map":
        return [np.where(target == 1, 255, 0).astype(np.uint8) for target in targets]
    return [target[-1] if isinstance(target, tuple) else target for target in targets]


def _check_score(metric: Metric, kind: str, predictions: list[Any], targets: list[Any]) -> None:
    label = f"{metric.name} of {kind}"
    before = copy.deepcopy((predictions, targets))
    score = metric.score(predictions, targets)
    assert isinstance(score, float), f"{label}: score must return a float, got {type(score).__name__}"
    assert _equal((predictions, targets), before), f"{label}: score changes its arguments"
    assert metric.score(predictions, targets) == score, f"{label}: score differs when it is called again"
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(targets)).tolist()
        again = metric.score([predictions[i] for i in order], [targets[i] for i in order])
        assert _same(again, score), f"{label}: the order of rows changes the score, {score} to {again}"
    perfect = metric.score(_perfect(kind, predictions, targets), targets)
    better = perfect >= score - _CLOSE if metric.higher_is_better else perfect <= score + _CLOSE
    sense = "higher" if metric.higher_is_better else "lower"
    assert better, f"{label}: {sense} is better, but perfect predictions score {perfect} and others {score}"
    if not metric.higher_is_better:
        assert perfect >= -_CLOSE, f"{label}: lower is better, but perfect predictions score {perfect}, below 0"


def _check_references(metric: Metric, predictions: list[Any], targets: list[Any]) -> None:
    """Check that a tuple of one text counts as this text, and that any of several is as good."""
    label, text = f"{metric.name} of text", metric.score(predictions, targets)
    alone = metric.score(predictions, [(target,) for target in targets])
    assert _same(alone, text), f"{label}: a tuple of one reference changes the score, {text} to {alone}"
    several = [(f"another than {target}", target) for target in targets]
    perfect, best = metric.score(targets, several), metric.score(targets, targets)
    assert _same(perfect, best), f"{label}: the last of several references scores {perfect}, a single one {best}"


def _check_bootstrap(metric: Metric, kind: str, predictions: list[Any], targets: list[Any], seed: int) -> None:
    label = f"{metric.name} of {kind}"
    for counts in _counts(targets, seed):
        before = copy.deepcopy((predictions, targets, counts.tolist()))
        scores = np.asarray(metric.bootstrap(predictions, targets, counts))
        assert _equal((predictions, targets, counts.tolist()), before), f"{label}: bootstrap changes its arguments"
        assert scores.shape == (len(counts),), (
            f"{label}: bootstrap must return {len(counts)} scores, got {scores.shape}"
        )
        expected = resampled(metric, predictions, targets, counts)
        for row, (got, wanted) in enumerate(zip(scores.tolist(), expected.tolist(), strict=True)):
            what = f"bootstrap gives {got} and score {wanted}"
            assert _same(got, wanted), f"{label}: {what} for the counts {counts[row].tolist()}"


def _counts(targets: list[Any], seed: int) -> Iterator[np.ndarray]:
    """Yield counts: resamples as a run draws them, then every row once, one row only, and the rows of one target."""
    draw, rows = np.random.default_rng(seed), len(targets)
    picks = draw.integers(0, rows, (_RESAMPLES, rows))
    yield np.stack([np.bincount(pick, minlength=rows) for pick in picks]).astype(np.int32)
    alone = np.zeros(rows, dtype=np.int64)
    alone[rows // 2] = rows
    yield np.stack([np.ones(rows, dtype=np.int64), alone, np.array([2 * _equal(t, targets[0]) for t in targets])])


def _equal(one: Any, other: Any) -> bool:
    """Return whether values are equal, arrays among them, at which NaN equals NaN."""
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE) or (math.isnan(one) and math.isnan(other))
