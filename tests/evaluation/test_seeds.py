"""Means over seeds and their intervals, against a bootstrap over seeds and rows in plain Python and NumPy."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import numpy as np
import pytest

from tangora.evaluation.bootstrap import Bootstrap, draws, interval, over_seeds, seed_draws
from tangora.evaluation.evaluator import Result
from tangora.evaluation.results import Outcome, rows
from tangora.evaluation.seeds import deviation, rows_by_seed, rows_over_seeds, summary, warned
from tangora.evaluation.significance import Pair, paired_test
from tangora.tasks.metrics import score
from tangora.tasks.values import Split, Task

RESAMPLES = 200
ROWS = {"mail": 13, "intent": 11}
SHARES = {"zero_shot": 0.3, "expert": 0.9, "average": 0.6}


def tasks_of(metric="accuracy"):
    targets = {name: np.random.default_rng(len(name)).integers(0, 3, count).tolist() for name, count in ROWS.items()}
    return [Task(name, "none", metric, ["x", "y", "z"], {"test": Split({}, of)}) for name, of in targets.items()]


def answered(task, share, seed):
    targets = task.splits["test"].targets
    wrong = np.random.default_rng([seed, len(task.name), int(100 * share)]).random(len(targets)) > share
    values = [(target + 1) % 3 if bad else target for target, bad in zip(targets, wrong, strict=True)]
    return Result(score(task.metric, values, targets), 0.5, values)


def outcomes(tasks, seed, shares=SHARES):
    """The base, which is the same with every seed; experts; and one fusion."""

    def results(method, salt):
        return {"test": {task.name: answered(task, shares[method], salt) for task in tasks}}

    names = tuple(task.name for task in tasks)
    weights = {"weights": [0.1 * seed, 0.5]}
    return [
        Outcome("-", "zero_shot", "", (), "none", {}, results("zero_shot", 99)),
        *(Outcome("lora", "expert", "", (name,), "none", {}, results("expert", seed)) for name in names),
        Outcome("lora", "average", "delta", names, "validation", weights, results("average", seed)),
    ]


def accuracy(values, targets, counts):
    """The accuracy of a resample, row by row."""
    right = sum(count for value, target, count in zip(values, targets, counts, strict=True) if value == target)
    return right / sum(counts)


def test_intervals_are_those_of_a_naive_bootstrap_over_seeds_and_rows():
    tasks, seeds = tasks_of(), (4, 0, 7)
    by_seed = {seed: outcomes(tasks, seed) for seed in seeds}
    (entry,) = [row for row in summary(by_seed, tasks, Bootstrap(tasks, RESAMPLES, 3)) if row["method"] == "average"]
    picked = seed_draws(3, len(seeds), RESAMPLES)
    counts = {task.name: draws(3, task.name, "test", ROWS[task.name], RESAMPLES) for task in tasks}
    assert (picked.sum(1) == len(seeds)).all()

    absolute, kept = [], []
    for b in range(RESAMPLES):
        chosen = [seed for place, seed in enumerate(seeds) for _ in range(picked[b, place])]
        scores, shares = [], []
        for seed in chosen:  # seeds first, then the same rows of each
            fused = by_seed[seed][-1].results["test"]
            experts = {one.subset[0]: one.results["test"] for one in by_seed[seed] if one.method == "expert"}
            for task in tasks:
                of = task.splits["test"].targets, counts[task.name][b]
                scores.append(accuracy(fused[task.name].values, *of))
                shares.append(scores[-1] / accuracy(experts[task.name][task.name].values, *of))
        absolute.append(fmean(scores))
        kept.append(fmean(shares))
    # sums of at most 6 fractions below 2 in another order: a few eps
    for name, naive in (("absolute", absolute), ("kept", kept)):
        expected = np.percentile(naive, [2.5, 97.5])
        assert [entry[f"{name}_low"], entry[f"{name}_high"]] == pytest.approx(expected, rel=1e-12)

    each = {seed: fmean(r.score for r in by_seed[seed][-1].results["test"].values()) for seed in seeds}
    assert entry["absolute_seeds"] == pytest.approx(list(each.values()), rel=1e-12)
    assert entry["absolute"] == pytest.approx(fmean(each.values()), rel=1e-12)
    assert entry["absolute_sd"] == pytest.approx(stdev(each.values()), rel=1e-9)
    assert entry["absolute_sd"] > 0.01, "the seeds of this test have to differ"


def test_one_seed_is_the_bootstrap_over_rows():
    tasks = tasks_of()
    bootstrap, alone = Bootstrap(tasks, RESAMPLES, 3), outcomes(tasks, 5)
    assert rows_over_seeds(rows_by_seed({5: alone}, tasks, bootstrap), bootstrap) == rows(alone, tasks, bootstrap)
    (entry,) = [row for row in summary({5: alone}, tasks, bootstrap) if row["method"] == "average"]
    fused = alone[-1].results["test"]
    samples = np.mean([bootstrap.samples(task, "test", fused[task.name].values) for task in tasks], axis=0)
    assert (entry["absolute_low"], entry["absolute_high"]) == interval(samples), "the same bits as without seeds"
    assert not [name for name in entry if "seed" in name or name.endswith("_sd")]


def test_rows_are_means_over_seeds_and_their_shares_are_of_the_same_seeds_experts():
    tasks, seeds = tasks_of(), (0, 1, 2)
    by_seed = {seed: outcomes(tasks, seed) for seed in seeds}
    bootstrap = Bootstrap(tasks, RESAMPLES, 0)
    each = rows_by_seed(by_seed, tasks, bootstrap)
    table = rows_over_seeds(each, bootstrap)
    place = next(i for i, row in enumerate(table) if (row.method, row.task) == ("average", "mail"))
    shares = []
    for seed in seeds:
        (expert,) = [one for one in by_seed[seed] if one.method == "expert" and one.subset == ("mail",)]
        shares.append(by_seed[seed][-1].results["test"]["mail"].score / expert.results["test"]["mail"].score)
    assert table[place].normalized == pytest.approx(fmean(shares), rel=1e-12)
    assert table[place].normalized_sd == pytest.approx(stdev(shares), rel=1e-9)
    assert table[place].score == fmean(each[seed][place].row.score for seed in seeds)
    assert (table[place].seeds, table[place].coefficients) == (3, ""), "each seed has its own coefficients"
    zero = next(row for row in table if row.method == "zero_shot" and row.task == "mail")
    assert zero.score_sd == 0
    assert (zero.ci_low, zero.ci_high) == (each[0][0].row.ci_low, each[0][0].row.ci_high)


def test_the_order_of_a_seeds_outcomes_changes_nothing():
    tasks = tasks_of()
    by_seed = {seed: outcomes(tasks, seed) for seed in (0, 1)}
    bootstrap = Bootstrap(tasks, RESAMPLES, 0)
    expected = rows_over_seeds(rows_by_seed(by_seed, tasks, bootstrap), bootstrap)
    by_seed[1] = [by_seed[1][3], by_seed[1][0], by_seed[1][2], by_seed[1][1]]
    assert rows_over_seeds(rows_by_seed(by_seed, tasks, bootstrap), bootstrap) == expected


def test_a_task_whose_expert_is_worse_than_the_base_with_one_seed_is_left_out_with_all():
    tasks = tasks_of()
    by_seed = {seed: outcomes(tasks, seed) for seed in (0, 1)}
    by_seed[1][1] = outcomes(tasks, 1, {**SHARES, "expert": 0.0})[1]  # that of mail
    bootstrap = Bootstrap(tasks, RESAMPLES, 0)
    each = rows_by_seed(by_seed, tasks, bootstrap)
    for seed in (0, 1):
        row = next(one.row for one in each[seed] if (one.row.method, one.row.task) == ("average", "mail"))
        assert row.normalized is None
        assert row.note.startswith("the lora expert of mail is worse than zero-shot (0.000 against")
        assert row.note.endswith("with seed 1")
    table = {row.task: row for row in rows_over_seeds(each, bootstrap) if row.method == "average"}
    assert table["mail"].normalized is None
    assert table["mean"].normalized == pytest.approx(table["intent"].normalized, rel=1e-12)
    (entry,) = [row for row in summary(by_seed, tasks, bootstrap) if row["method"] == "average"]
    assert entry["kept"] == pytest.approx(table["intent"].normalized, rel=1e-12)
    assert entry["kept_sd"] == pytest.approx(table["intent"].normalized_sd, rel=1e-9)


def test_a_seed_that_was_not_drawn_may_have_an_undefined_score():
    drawn = np.array([[2, 0], [1, 1], [0, 2]])
    found = over_seeds([np.array([0.2, 0.4, 0.6]), np.array([math.nan, 0.8, math.nan])], drawn)
    assert found[:2].tolist() == pytest.approx([0.2, 0.6])
    assert math.isnan(found[2])


def test_a_deviation_needs_two_values():
    assert deviation([0.5]) is None
    assert deviation([0.5, None]) is None
    assert deviation([0.5, math.inf]) is None
    assert deviation([1.0, 2.0, 4.0]) == stdev([1, 2, 4])


def test_warnings_name_their_seeds():
    lines = list(warned({0: ["a", "b"], 1: ["a"], 2: ["a", "b", "c"]}))
    assert lines == ["a", "b (seeds 0, 2)", "c (seed 2)"]
    assert list(warned({3: ["a"]})) == ["a"]


def test_a_paired_test_resamples_seeds_and_exchanges_rows_with_every_seed_alike():
    (task, _), seeds = tasks_of(), (0, 1, 2)
    targets = task.splits["test"].targets
    answers = {seed: [answered(task, share, seed).values for share in (0.5, 0.8)] for seed in seeds}
    pairs = [Pair(task.name, "accuracy", targets, *answers[seed], 1 / 3, i) for i, seed in enumerate(seeds)]
    made = paired_test(pairs, resamples=RESAMPLES, permutations=2**13, seed=2)
    counts, picked = draws(2, task.name, "test", len(targets), RESAMPLES), seed_draws(2, 3, RESAMPLES)
    naive = []
    for b in range(RESAMPLES):
        chosen = [seed for place, seed in enumerate(seeds) for _ in range(picked[b, place])]
        before, after = (fmean(accuracy(answers[s][i], targets, counts[b]) for s in chosen) for i in (0, 1))
        naive.append(after - before)
    assert [made.low, made.high] == pytest.approx(np.percentile(naive, [2.5, 97.5]), abs=1e-12)
    each = [score("accuracy", answers[s][1], targets) - score("accuracy", answers[s][0], targets) for s in seeds]
    assert made.by_seed == pytest.approx(each, abs=1e-12)
    assert made.difference == pytest.approx(fmean(each), abs=1e-12)

    gains = [[int(new == t) - int(old == t) for old, new, t in zip(*answers[s], targets, strict=True)] for s in seeds]
    differing = np.any([np.array(answers[s][0]) != np.array(answers[s][1]) for s in seeds], axis=0)
    per_row = np.sum(gains, axis=0)[differing]
    every = (np.arange(2 ** len(per_row))[:, None] >> np.arange(len(per_row))) & 1
    sums = np.where(every == 1, per_row, -per_row).sum(1)
    assert made.exact
    assert made.p == pytest.approx((np.abs(sums) >= abs(per_row.sum())).mean(), abs=1e-12)
