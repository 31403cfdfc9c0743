from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tangora.errors import DataError
from tangora.tasks import METRICS, score


def test_accuracy_and_macro_f1_are_scikit_learns():
    draw = np.random.default_rng(0)
    predictions, targets = draw.integers(0, 4, 60), draw.integers(0, 5, 60)
    assert score("accuracy", predictions, targets) == pytest.approx(accuracy_score(targets, predictions))
    expected = f1_score(targets, predictions, average="macro", zero_division=0)
    assert score("macro_f1", predictions, targets) == pytest.approx(expected)


def test_matthews_by_hand():
    # tp 1, tn 2, fp 1, fn 1: (1*2 - 1*1) / sqrt(2 * 2 * 3 * 3)
    assert score("matthews", [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]) == pytest.approx(1 / 6)


def test_matthews_of_texts():
    assert score("matthews", ["yes", "no", " no"], ["yes", "no", "no"]) == pytest.approx(1.0)


def test_exact_match_ignores_surrounding_white_space_only():
    assert score("exact_match", [" yes", "No", "no\n"], ["yes", "no", "no"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        (["0.5", "1", "3.0"], 1.0),
        (["3", "2", "1"], -1.0),
        (["none", "1", "2"], 1.0),
        (["nan", "1", "2"], 1.0),
        (["a", "b", "c"], 0.0),
    ],
)
def test_spearman_reads_texts_as_numbers(predictions, expected):
    assert score("spearman", predictions, ["1.0", "2.0", "4.0"]) == pytest.approx(expected)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'accuracy'"):
        score("accurracy", [1], [1])


@pytest.mark.parametrize(("predictions", "targets"), [([], []), ([1], [1, 0])])
@pytest.mark.parametrize("metric", METRICS)
def test_rows_must_agree(metric, predictions, targets):
    with pytest.raises(DataError, match="one prediction for each"):
        score(metric, predictions, targets)
