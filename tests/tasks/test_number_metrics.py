"""Metrics of numbers and likelihoods against cases by hand, NumPy, SciPy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error

from tangora.evaluation.results import kept
from tangora.tasks import METRICS, score
from tangora.tasks.metrics import bootstrap, resampled

ROUNDED = 1e-12  # sums of some hundred terms are rounded by less than this, relatively


@pytest.fixture
def pairs():
    draw = np.random.default_rng(0)
    targets = draw.normal(3, 2, 200)
    return (0.5 * targets + draw.normal(0, 1, 200)).tolist(), targets.tolist()


def counts_of(rows: int, resamples: int = 20) -> np.ndarray:
    return np.random.default_rng(rows).multinomial(rows, [1 / rows] * rows, size=resamples)


@pytest.mark.parametrize("name", ["mse", "rmse", "pearson", "spearman"])
@pytest.mark.parametrize("rows", [1, 2, 200])
def test_a_bootstrap_is_the_loop_over_resamples(name, rows, pairs):
    predictions, targets = (column[:rows] for column in pairs)
    expected = resampled(METRICS.get(name), predictions, targets, counts_of(rows))
    np.testing.assert_allclose(
        bootstrap(name, predictions, targets, counts_of(rows)), expected, rtol=ROUNDED, atol=ROUNDED
    )


def test_errors(pairs):
    # (1, 2, 2) are off by (0, -1, 2): 5 / 3
    assert score("mse", [1.0, 2.0, 2.0], [1.0, 3.0, 0.0]) == pytest.approx(5 / 3)
    assert score("rmse", [1.0, 2.0, 2.0], [1.0, 3.0, 0.0]) == pytest.approx(math.sqrt(5 / 3))
    assert score("mse", *pairs) == pytest.approx(mean_squared_error(*pairs))


def test_correlations(pairs):
    # deviations (-1, 0, 1) and (-1, 2, -1): 0; and (-2, 1, 1): 3 / sqrt(2 * 6)
    assert score("pearson", [1.0, 2.0, 3.0], [0.0, 3.0, 0.0]) == pytest.approx(0.0, abs=ROUNDED)
    assert score("pearson", [1.0, 2.0, 3.0], [0.0, 3.0, 3.0]) == pytest.approx(3 / math.sqrt(12))
    assert score("pearson", *pairs) == pytest.approx(pearsonr(*pairs).statistic)
    assert score("spearman", *pairs) == pytest.approx(spearmanr(*pairs).statistic)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_numbers_does_not_change_a_correlation(pairs, size):
    scaled = [[size * value for value in column] for column in pairs]
    assert score("pearson", *scaled) == pytest.approx(score("pearson", *pairs), rel=1e-9)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_constant_correlates_with_nothing(name):
    assert score(name, [1 / 3] * 4, [1.0, 2.0, 3.0, 5.0]) == 0.0
    predictions, targets = [1.0, 0.2, 0.5], [1.0, 0.2, 0.3]
    assert 3 * 0.2 / 3 != 0.2, "the rounded mean of equal numbers can be another number"
    first, second = bootstrap(name, predictions, targets, np.array([[0, 3, 0], [2, 2, 2]]))
    assert first == 0.0
    assert second == pytest.approx(score(name, predictions, targets))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_the_nearest_of_several_numbers_counts(name):
    assert score(name, ["1", "2.5", "word"], [("7", "1.1"), ("2.4", "9", "no"), ("3", "0")]) == pytest.approx(
        score(name, [1.0, 2.5, 0.0], [1.1, 2.4, 0.0])
    )


def test_likelihoods_by_hand():
    # 4 tokens of probability 1/2, and 2 of 1/8: 10 bits over 6 tokens and 20 bytes
    predictions, targets = [[4 * math.log(2), 4], [2 * math.log(8), 2]], [13, 7]
    assert score("perplexity", predictions, targets) == pytest.approx(2 ** (10 / 6))
    assert score("bits_per_byte", predictions, targets) == pytest.approx(0.5)
    doubled = np.array([[1, 2]])
    assert bootstrap("perplexity", predictions, targets, doubled)[0] == pytest.approx(2 ** (16 / 8))
    assert bootstrap("bits_per_byte", predictions, targets, doubled)[0] == pytest.approx(16 / 27)


def test_likelihoods_weigh_rows_by_their_length():
    """A row of no tokens adds nothing, and one text in two rows is the same as in one."""
    whole, parts = [[6.0, 5]], [[1.0, 2], [5.0, 3], [0.0, 0]]
    assert score("perplexity", parts, [4, 8, 0]) == pytest.approx(score("perplexity", whole, [12]))
    assert score("bits_per_byte", parts, [4, 8, 0]) == pytest.approx(score("bits_per_byte", whole, [12]))


def test_likelihoods_of_nothing_are_undefined():
    assert math.isnan(score("perplexity", [[0.0, 0]], [0]))
    assert math.isnan(score("bits_per_byte", [[0.0, 0]], [0]))


def test_a_hopeless_model_has_a_finite_perplexity():
    """Tables and JSON hold no infinity."""
    assert math.isfinite(score("perplexity", [[1e5, 2]], [3]))
    assert score("perplexity", [[math.inf, 2]], [3]) == score("perplexity", [[1e5, 2]], [3])
    assert math.isnan(score("perplexity", [[math.nan, 2]], [3]))


def test_what_is_kept_of_a_perplexity():
    """The share of the mean probability: 1 is as good as the expert, also for one that makes no error."""
    # tokens of probability 1/2 by the expert, and of 1/8 by the fusion: a quarter is kept
    expert, fused = (score("perplexity", [[4 * math.log(n), 4]], [9]) for n in (2, 8))
    assert kept(fused, expert, higher_is_better=False) == pytest.approx(1 / 4)
    assert kept(1.0, 1.0, higher_is_better=False) == 1.0
    assert kept(2.0, 1.0, higher_is_better=False) == 0.5
