"""Rows, normalization and intervals, against numbers worked by hand."""

from __future__ import annotations

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest

from tangora.evaluation.evaluator import Result
from tangora.evaluation.results import Bootstrap, Outcome, interval, kept, rank_kept, rows, write_csv
from tangora.evaluation.seeds import summary
from tangora.tasks import METRICS

TARGETS = {"a": [0, 1, 0, 1], "b": [0, 0, 1, 1]}


def task(name, metric="accuracy", *more):
    split = SimpleNamespace(targets=TARGETS[name])
    splits = {"test": split, "validation": split}
    return SimpleNamespace(name=name, metric=metric, metrics=(metric, *more), splits=splits)


def result(name, values):
    right = np.mean([v == t for v, t in zip(values, TARGETS[name], strict=True)])
    return Result(float(right), 0.5, values)


def outcome(method, mode, subset, values, selection="validation"):
    results = {"test": {n: result(n, v) for n, v in values.items()}}
    return Outcome(mode, method, "delta" if method != "expert" else "", subset, selection, {"weights": [0.5]}, results)


@pytest.fixture
def outcomes():
    perfect, half = TARGETS, {"a": [0, 1, 1, 0], "b": [0, 0, 0, 0]}
    return [
        Outcome("-", "zero_shot", "", (), "none", {}, {"test": {n: result(n, v) for n, v in half.items()}}),
        outcome("expert", "lora", ("a",), {"a": perfect["a"], "b": half["b"]}, "none"),
        outcome("expert", "lora", ("b",), {"a": half["a"], "b": perfect["b"]}, "none"),
        outcome("expert", "weak", ("a",), {"a": half["a"], "b": half["b"]}, "none"),
        outcome("expert", "weak", ("b",), {"a": half["a"], "b": half["b"]}, "none"),
        outcome("average", "lora", ("a", "b"), {"a": half["a"], "b": perfect["b"]}),
        outcome("average", "weak", ("a", "b"), {"a": half["a"], "b": half["b"]}),
    ]


@pytest.fixture
def tasks():
    return [task("a"), task("b")]


def pick(table, **where):
    found = [r for r in table if all(getattr(r, k) == v for k, v in where.items())]
    assert len(found) == 1, where
    return found[0]


def test_normalized_by_own_expert_and_by_the_best(outcomes, tasks):
    table = rows(outcomes, tasks, Bootstrap(tasks, 200))
    fused = pick(table, method="average", mode="lora", task="a")
    assert (fused.score, fused.normalized, fused.normalized_best) == (0.5, 0.5, 0.5)
    weak = pick(table, method="average", mode="weak", task="a")
    assert (weak.score, weak.normalized, weak.normalized_best) == (0.5, 1.0, 0.5)


def test_means_over_the_subset_and_over_all(outcomes, tasks):
    table = rows(outcomes, tasks, Bootstrap(tasks, 200))
    assert pick(table, method="average", mode="lora", task="mean").score == 0.75
    expert = pick(table, method="expert", mode="lora", subset="a", task="mean")
    assert (expert.score, expert.n_tasks, expert.in_subset) == (1.0, 1, True)
    assert pick(table, method="expert", mode="lora", subset="a", task="mean_all").score == 0.75
    assert pick(table, method="zero_shot", task="mean_all").score == 0.5
    assert not [r for r in table if r.method == "zero_shot" and r.task == "mean"]


def test_zero_shot_is_normalized_by_the_best_expert_only(outcomes, tasks):
    row = pick(rows(outcomes, tasks, Bootstrap(tasks, 200)), method="zero_shot", task="a")
    assert (row.normalized, row.normalized_best, row.subset, row.n_tasks) == (None, 0.5, "", 0)


def test_an_expert_worth_nothing_normalizes_nothing(tasks):
    wrong = {"a": [1, 0, 1, 0], "b": [0, 0, 0, 0]}
    table = rows(
        [outcome("expert", "lora", ("a",), wrong), outcome("average", "lora", ("a", "b"), wrong)],
        tasks,
        Bootstrap(tasks, 200),
    )
    assert pick(table, method="average", task="a").normalized is None
    assert pick(table, method="average", task="mean").normalized is None


def test_an_expert_worse_than_the_base_has_no_shares_and_the_note_says_why(tasks):
    right, half, quarter = TARGETS, {"a": [0, 1, 1, 0], "b": [0, 0, 0, 0]}, {"a": [0, 0, 1, 0], "b": TARGETS["b"]}
    base = Outcome("-", "zero_shot", "", (), "none", {}, {"test": {n: result(n, v) for n, v in half.items()}})
    made = [
        base,
        outcome("expert", "lora", ("a",), {"a": quarter["a"], "b": half["b"]}, "none"),
        outcome("expert", "lora", ("b",), {"a": half["a"], "b": right["b"]}, "none"),
        outcome("average", "lora", ("a", "b"), {"a": half["a"], "b": half["b"]}),
    ]
    table = rows(made, tasks, Bootstrap(tasks, 200))
    fused = pick(table, method="average", task="a")
    reason = "the lora expert of a is worse than zero-shot (0.250 against 0.500)"
    assert (fused.score, fused.normalized, fused.normalized_best, fused.note) == (0.5, None, None, reason)
    mean = pick(table, method="average", task="mean")
    assert (mean.score, mean.normalized, mean.normalized_best) == (0.5, 0.5, 0.5), "b alone is kept, by half"
    assert mean.note == f"left out: {reason}"
    assert {r.note for r in table if r.task == "b"} == {""}
    entry = next(r for r in summary({0: made}, tasks, Bootstrap(tasks, 200)) if r["method"] == "average")
    assert (entry["absolute"], entry["kept"], entry["kept_best"]) == (0.5, 0.5, 0.5)
    assert entry["kept_low"] <= 0.5 <= entry["kept_high"]
    good = outcome("expert", "full", ("a",), {"a": right["a"], "b": half["b"]}, "none")
    best = pick(rows([*made, good], tasks, Bootstrap(tasks, 200)), method="average", task="a")
    assert (best.normalized, best.normalized_best) == (None, 0.5), "another mode's expert is better than the base"


def test_more_errors_than_the_base_are_worse_too(errors):
    tasks = [task("a", errors)]
    made = [
        Outcome("-", "zero_shot", "", (), "none", {}, {"test": {"a": wrong("a", [0, 1, 0, 0])}}),
        Outcome("lora", "expert", "", ("a",), "none", {}, {"test": {"a": wrong("a", [0, 1, 1, 0])}}),
        Outcome("lora", "average", "delta", ("a",), "given", {}, {"test": {"a": wrong("a", [0, 1, 0, 0])}}),
    ]
    fused = pick(rows(made, tasks, Bootstrap(tasks, 200)), method="average", task="a")
    assert (fused.normalized, fused.note) == (
        None,
        "the lora expert of a is worse than zero-shot (0.500 against 0.250)",
    )
    assert math.isnan(kept(0.25, 0.5, 0.25, higher_is_better=False))
    assert kept(0.25, 0.25, 0.25, higher_is_better=False) == kept(0.5, 0.5, 0.5) == 1.0, "as good as the base is shared"


def test_intervals_are_seeded_paired_and_as_wide_as_binomial_ones():
    rng = np.random.default_rng(0)
    targets = [1] * 400
    many = SimpleNamespace(
        name="m", metric="accuracy", metrics=("accuracy",), splits={"test": SimpleNamespace(targets=targets)}
    )
    values = (rng.random(400) < 0.8).astype(int).tolist()
    bootstrap = Bootstrap([many], 4000, seed=3)
    low, high = interval(bootstrap.samples(many, "test", values))
    p = np.mean(values)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 400), rel=0.1)
    again = Bootstrap([many], 4000, seed=3).samples(many, "test", values)
    assert np.array_equal(bootstrap.samples(many, "test", values), again)
    other = [1 - v for v in values]
    assert np.allclose(bootstrap.samples(many, "test", other), 1 - again), "the same rows are drawn for every candidate"


def test_metrics_that_are_no_mean_are_recomputed_on_each_resample():
    flat = task("a", metric="macro_f1")
    samples = Bootstrap([flat], 100).samples(flat, "test", TARGETS["a"])
    assert samples.max() == 1.0
    assert set(np.round(samples, 6)) <= {1.0, 0.5}, "all right, or (one class only) still right or half"


def test_summary_averages_over_subsets_and_keeps_pairs(outcomes, tasks):
    table = summary({0: outcomes}, tasks, Bootstrap(tasks, 300))
    lora = next(r for r in table if (r["mode"], r["method"]) == ("lora", "average"))
    assert (lora["n_tasks"], lora["subsets"], lora["absolute"], lora["kept"]) == (2, 1, 0.75, 0.75)
    assert lora["kept_low"] <= 0.75 <= lora["kept_high"]
    weak = next(r for r in table if (r["mode"], r["method"]) == ("weak", "average"))
    assert (weak["kept"], weak["kept_low"], weak["kept_high"]) == (1.0, 1.0, 1.0), "equal predictions keep exactly 1"
    assert weak["kept_best"] == 0.5
    expert = next(r for r in table if (r["mode"], r["method"]) == ("lora", "expert"))
    assert (expert["n_tasks"], expert["subsets"], expert["absolute"]) == (1, 2, 1.0)


def test_csv_has_the_promised_columns(outcomes, tasks, tmp_path):
    write_csv(tmp_path / "scores.csv", rows(outcomes, tasks, Bootstrap(tasks, 200)))
    with (tmp_path / "scores.csv").open() as file:
        read = list(csv.DictReader(file))
    columns = "mode method space subset n_tasks in_subset selection coefficients task split metric score "
    columns += "normalized normalized_best ci_low ci_high note"
    assert " ".join(read[0]) == columns
    fused = next(r for r in read if r["method"] == "average" and r["mode"] == "lora" and r["task"] == "b")
    assert fused["subset"] == "a+b"
    assert fused["in_subset"] == "true"
    assert fused["coefficients"] == '{"weights": [0.5]}'
    assert float(fused["score"]) == 1.0
    keys = [(r["mode"], r["method"], r["space"], r["subset"], r["selection"], r["split"], r["task"]) for r in read]
    assert len(set(keys)) == len(keys), "one row for each"


def test_further_metrics_have_rows_of_their_own_after_the_primary(outcomes):
    tasks = [task("a", "accuracy", "macro_f1"), task("b", "accuracy", "macro_f1", "matthews")]
    table = rows(outcomes, tasks, Bootstrap(tasks, 200))
    fused = [r for r in table if (r.method, r.mode) == ("average", "lora")]
    expected = [("a", "accuracy"), ("a", "macro_f1"), ("b", "accuracy"), ("b", "macro_f1"), ("b", "matthews")]
    both = [(m, s) for m in ("mean", "mean_all") for s in ("accuracy", "macro_f1")]
    assert [(r.task, r.metric) for r in fused] == expected + both
    alone = [task("a"), task("b")]
    primary = [r for r in table if r.metric == "accuracy"]
    assert primary == rows(outcomes, alone, Bootstrap(alone, 200)), "the primary rows are those without the others"
    assert pick(fused, task="a", metric="macro_f1").score == 0.5
    assert pick(fused, task="b", metric="matthews").normalized == 1.0


class Errors:
    """The share of wrong rows: lower is better."""

    name, takes, higher_is_better = "errors", frozenset({"classes"}), False

    def score(self, predictions, targets, /):
        return sum(p != t for p, t in zip(predictions, targets, strict=True)) / len(targets)

    def bootstrap(self, predictions, targets, counts, /):
        return (counts @ (np.asarray(predictions) != np.asarray(targets))) / counts.sum(1)


@pytest.fixture
def errors():
    METRICS.register("errors", Errors())
    yield "errors"
    METRICS.unregister("errors")


def wrong(name, values):
    return Result(Errors().score(values, TARGETS[name]), 0.5, values)


def test_where_lower_is_better_half_is_kept_by_twice_the_errors(errors):
    tasks = [task("a", errors)]
    one, two, three = [0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]
    outcomes = [
        Outcome("lora", "expert", "", ("a",), "none", {}, {"test": {"a": wrong("a", one)}}),
        Outcome("full", "expert", "", ("a",), "none", {}, {"test": {"a": wrong("a", two)}}),
        Outcome("full", "average", "delta", ("a",), "given", {}, {"test": {"a": wrong("a", three)}}),
    ]
    table = rows(outcomes, tasks, Bootstrap(tasks, 200))
    fused = pick(table, method="average", task="a")
    assert (fused.score, fused.normalized, fused.normalized_best) == (0.75, pytest.approx(2 / 3), pytest.approx(1 / 3))
    entry = next(r for r in summary({0: outcomes}, tasks, Bootstrap(tasks, 200)) if r["method"] == "average")
    assert (entry["kept"], entry["kept_best"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert entry["kept_low"] <= entry["kept"] <= entry["kept_high"]


def test_a_perfect_fusion_of_an_imperfect_expert_has_no_finite_share(errors):
    tasks = [task("a", errors)]
    outcomes = [
        Outcome("lora", "expert", "", ("a",), "none", {}, {"test": {"a": wrong("a", [0, 1, 0, 0])}}),
        Outcome("lora", "average", "delta", ("a",), "given", {}, {"test": {"a": wrong("a", TARGETS["a"])}}),
    ]
    assert pick(rows(outcomes, tasks, Bootstrap(tasks, 200)), method="average", task="a").normalized is None
    assert math.isinf(kept(0.0, 0.25, higher_is_better=False))
    assert kept(0.0, 0.0, higher_is_better=False) == 1.0


def test_what_candidates_are_ranked_by(errors):
    metrics = {"a": "accuracy", "b": "matthews"}
    assert rank_kept({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.0}, metrics) == 0.5, "an expert worth nothing is left out"
    assert rank_kept({"b": 0.9}, {"b": -0.1}, metrics) == rank_kept({"b": 0.1}, {"b": -0.1}, metrics) == 0.0
    assert rank_kept({"a": math.nan, "b": 0.9}, {"a": 0.8, "b": 0.5}, metrics) == -math.inf
    fewer, more = (rank_kept({"a": s}, {"a": 0.2}, {"a": errors}) for s in (0.1, 0.4))
    assert fewer > more
