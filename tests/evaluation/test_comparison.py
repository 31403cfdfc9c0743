"""`Comparison` against the summaries of runs, which are computed by other code from the same predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tangora.evaluation.comparison import Comparison
from tangora.evaluation.evaluator import Result
from tangora.evaluation.results import Bootstrap, Outcome
from tangora.evaluation.seeds import summary
from tangora.tasks.metrics import score
from tangora.tasks.values import Split, Task


def task(name, metric="accuracy", rows=40):
    targets = np.random.default_rng(len(name)).integers(0, 3, rows).tolist()
    return Task(name, "none", metric, ["x", "y", "z"], {"test": Split({}, targets, fingerprint=name)}, fingerprint=name)


def result(of, share, seed):
    targets = of.splits["test"].targets
    wrong = np.random.default_rng(seed).random(len(targets)) > share
    values = [(target + 1) % 3 if bad else target for target, bad in zip(targets, wrong, strict=True)]
    return Result(score(of.metric, values, targets), 0.5, values)


@pytest.fixture
def made():
    tasks = {name: task(name, metric) for name, metric in (("a", "accuracy"), ("bb", "macro_f1"))}
    shares = {"base": 0.3, "a": 0.9, "bb": 0.8, "fused": 0.6}
    results = {m: {n: result(t, s, hash((m, n)) % 99) for n, t in tasks.items()} for m, s in shares.items()}
    return Comparison(results, tasks, {"a": "a", "bb": "bb"}, "test", resamples=200, seed=3)


def test_means_and_shares_are_those_of_a_run(made):
    outcomes = [Outcome("m", "expert", "", (n,), "none", {}, {"test": made.results[n]}) for n in made.tasks]
    outcomes.append(Outcome("m", "fused", "delta", tuple(made.tasks), "given", {}, {"test": made.results["fused"]}))
    tasks = list(made.tasks.values())
    (row,) = [r for r in summary({0: outcomes}, tasks, Bootstrap(tasks, 200, 3)) if r["method"] == "fused"]
    mean = made.mean("fused")
    assert (mean.score, mean.low, mean.high) == (row["absolute"], row["absolute_low"], row["absolute_high"])
    assert (mean.kept, mean.kept_low, mean.kept_high) == (row["kept"], row["kept_low"], row["kept_high"])


def test_a_model_keeps_all_of_itself_and_is_no_better_than_itself(made):
    cell = made["a"]["a"]
    assert (cell.kept, cell.kept_low, cell.kept_high) == (1.0, 1.0, 1.0)
    same = made.more("a", "a")
    assert (same.value, same.low, same.high, same.certain) == (0, 0, 0, False)
    assert made.more("a", "base", "a").certain
    assert made.more("base", "a", "a").value == -made.more("a", "base", "a").value


def test_without_a_common_scale_models_are_ranked_by_what_they_keep():
    tasks = {"a": task("a"), "bb": Task("bb", "none", "rmse", [], {"test": Split({}, [1.0, 2.0, 3.0, 4.0])})}
    values = {"a": [1.0, 2.0, 3.0, 3.0], "fused": [1.0, 2.0, 2.0, 3.0]}
    results = {
        model: {"a": result(tasks["a"], 0.9, 1), "bb": Result(score("rmse", v, [1.0, 2.0, 3.0, 4.0]), 0.1, v)}
        for model, v in values.items()
    }
    made = Comparison(results, tasks, {"a": "a", "bb": "a"}, "test", resamples=100)
    assert math.isnan(made.mean("fused").score)
    assert made.rank("fused") == made.mean("fused").kept < 1
    assert made.to_dict()["models"]["fused"]["mean"]["score"] is None
    assert "a 100.0 %" in repr(made)


def test_tasks_without_an_expert_have_no_share(made):
    alone = Comparison(made.results, made.tasks, {"a": "a"}, "test", resamples=100)
    assert alone["fused"]["bb"].kept is None
    assert alone.mean("fused").kept == alone["fused"]["a"].kept
    assert Comparison(made.results, made.tasks, {}, "test").mean("fused").kept is None


def test_an_expert_worse_than_the_base_has_no_share_and_is_left_out_of_means(made):
    swapped = {**made.results, "base": made.results["base"] | {"a": made.results["a"]["a"]}}
    swapped["a"] = made.results["a"] | {"a": made.results["base"]["a"]}
    weak = Comparison(swapped, made.tasks, made.experts, "test", resamples=100, base="base")
    assert list(weak.without_share) == ["a"]
    assert weak["fused"]["a"].kept is None
    assert weak.mean("fused").kept == weak["fused"]["bb"].kept
    assert weak.to_dict()["without_share"]["a"].startswith("worse than zero-shot")
    unknown = Comparison(swapped, made.tasks, made.experts, "test", resamples=100)
    assert unknown["fused"]["a"].kept is not None, "without a base, nothing is known to be worse"
