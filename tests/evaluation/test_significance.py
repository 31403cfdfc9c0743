"""Paired tests against cases enumerated by hand, against scipy, and against the definition with every metric."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from tangora.evaluation.significance import Pair, holm, p_value, paired_test
from tangora.tasks.metrics import bootstrap, score


def pair(first, second, targets=None, metric="accuracy", task="a", share=1.0):
    return Pair(task, metric, targets or [1] * len(first), first, second, share)


def test_holm_by_hand():
    # sorted 0.005 0.01 0.03 0.04 times 4 3 2 1: 0.02 0.03 0.06 0.04, and no smaller than the one before: 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_a_tiny_case_enumerated_by_hand():
    """Differences of the rows 1, 1, -1: the sums of the 8 signs are ±3 once each and ±1 three times each."""
    found = paired_test([pair([0, 0, 1, 1], [1, 1, 0, 1])])
    assert (found.difference, found.exact, found.exchanges, found.differing) == (0.25, True, 8, 3)
    assert found.p == 1.0
    assert paired_test([pair([0, 0, 0, 1], [1, 1, 1, 1])]).p == 2 / 8


def test_under_the_null_every_exact_p_is_as_likely_as_it_says():
    """Of the 2^m exchanges of m rows, a share of exactly α has p ≤ α, at every α that p can be."""
    values = []
    for signs in itertools.product([0, 1], repeat=6):
        values.append(paired_test([pair([0 if s else 1 for s in signs], list(signs))], resamples=2).p)
    for alpha in sorted(set(values)):
        assert np.mean([p <= alpha + 1e-12 for p in values]) == pytest.approx(alpha)
    assert sorted(set(values)) == pytest.approx([2 / 64, 14 / 64, 44 / 64, 1.0])  # |sum| of 6, ≥ 4, ≥ 2, any


def test_equal_predictions_have_no_difference_and_p_1():
    found = paired_test([pair([0, 1, 1], [0, 1, 1])])
    assert (found.difference, found.low, found.high, found.p, found.exchanges) == (0.0, 0.0, 0.0, 1.0, 1)


def test_p_is_that_of_scipy():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=9).round(3).tolist() for _ in range(2))
    targets = rng.normal(size=9).round(3).tolist()
    found = paired_test([pair(first, second, targets, "mse")])
    one, other = ((np.array(v) - targets) ** 2 for v in (first, second))
    expected = stats.permutation_test((other, one), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert found.difference == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.exact, found.exchanges) == (True, 512)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews"])
def test_a_corpus_metric_is_scored_anew_after_each_exchange(metric):
    rng = np.random.default_rng(4)
    targets, first, second = (rng.integers(0, 3, 12).tolist() for _ in range(3))
    differing = [i for i in range(12) if first[i] != second[i]]
    observed = score(metric, second, targets) - score(metric, first, targets)
    far = 0
    for number in range(2 ** len(differing)):
        one, other = list(first), list(second)
        for place, row in enumerate(differing):
            if number >> place & 1:
                one[row], other[row] = other[row], one[row]
        far += abs(score(metric, other, targets) - score(metric, one, targets)) >= abs(observed) - 1e-12
    assert paired_test([pair(first, second, targets, metric)], resamples=2).p == far / 2 ** len(differing)


def test_a_mean_over_tasks_exchanges_the_rows_of_all_tasks_at_once():
    """Rows differ by 1/2 · (1/2, 1/2) in a and 1/2 · 1/4 · (1, 1) in b: p is 2 of the 16 sums of signs."""
    pairs = [pair([0, 0], [1, 1], task="a", share=0.5), pair([0, 0, 1, 1], [1, 1, 1, 1], task="b", share=0.5)]
    found = paired_test(pairs)
    assert (found.difference, found.exchanges, found.p) == (0.75, 16, 2 / 16)


def test_one_task_in_two_subsets_is_one_set_of_rows():
    twice = [pair([0, 0, 1], [1, 1, 1], share=0.5), pair([0, 1, 1], [1, 1, 1], share=0.5)]
    found = paired_test(twice)
    assert (found.differing, found.exchanges) == (2, 4)
    assert found.p == 2 / 4  # ±(2/6 + 1/6) are the extremes; the two others are ±(1/6)


def test_random_exchanges_are_seeded_and_near_the_exact_share():
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 2, 12).tolist() for _ in range(2))
    exact = paired_test([pair(first, second)], permutations=2**12, resamples=2)
    drawn = paired_test([pair(first, second)], permutations=2 ** (exact.differing - 1), resamples=2, seed=3)
    again = paired_test([pair(first, second)], permutations=2 ** (exact.differing - 1), resamples=2, seed=3)
    assert (exact.exact, drawn.exact) == (True, False)
    assert drawn.p == again.p > 0
    # five standard errors of a share, and the 1 that is added to both
    assert abs(drawn.p - exact.p) <= 5 * np.sqrt(0.25 / drawn.exchanges) + 1 / drawn.exchanges


def test_the_interval_is_paired():
    """Half of the rows are wrong in both: that half adds nothing to the difference's spread."""
    first, second = [0] * 50 + [1] * 49 + [0], [0] * 50 + [1] * 50
    found = paired_test([pair(first, second)], resamples=2000)
    assert found.difference == pytest.approx(0.01)
    # one row differs, drawn Binomial(100, 0.01) times: the 97.5 % point is 3 of 100
    assert (found.low, found.high) == (0.0, pytest.approx(0.03))


def test_no_exact_p_is_below_that_of_the_observed_and_its_mirror():
    """Squares of 1e6, of which the sums round by 1e-10, and a difference of 1e-4: two of 16 exchanges are as far."""
    for seed in range(30):
        draw = np.random.default_rng(seed)
        first = 1e3 * draw.normal(size=40)
        second = first.copy()
        second[:4] += 1e-4 * draw.normal(size=4)
        found = paired_test([Pair("a", "mse", [0.0] * 40, first.tolist(), second.tolist())], resamples=2)
        assert found.exchanges == 16
        assert found.p >= 2 / 16


def test_a_score_that_is_no_number_has_no_interval_and_no_warning():
    nothing = Pair("a", "perplexity", [1, 1], [[0.0, 0], [0.0, 0]], [[0.5, 1], [0.6, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_test([nothing], resamples=10)
    assert math.isnan(found.low)
    assert found.p == 1.0


def test_an_undefined_score_counts_as_far():
    assert p_value(0.5, np.array([0.1, np.nan]), exact=True) == 0.5


def test_exchanges_agree_in_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    first, second, targets = (rng.integers(0, 3, 9).tolist() for _ in range(3))
    whole = paired_test([pair(first, second, targets, "macro_f1")])
    monkeypatch.setattr("tangora.evaluation.significance._BLOCK", 40)
    assert paired_test([pair(first, second, targets, "macro_f1")]) == whole
    assert bootstrap("accuracy", first, targets, np.ones((1, 9), np.int32))[0] == score("accuracy", first, targets)
