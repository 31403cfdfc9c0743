"""Runs that are made up, with predictions: as much of a folder as `tangora compare` and `tangora table` read."""

from __future__ import annotations

import json

import numpy as np

from tangora.evaluation.bootstrap import Bootstrap
from tangora.evaluation.evaluator import Result
from tangora.evaluation.results import Outcome, rows, write_csv
from tangora.runs.stages.outcomes import Outcomes, write_outcomes
from tangora.runs.stages.scored_rows import write_scored_rows
from tangora.tasks.metrics import score
from tangora.tasks.values import Split, Task


def task(name, metric="accuracy", count=30, salt=0):
    targets = np.random.default_rng([len(name), salt]).integers(0, 3, count).tolist()
    splits = {"test": Split({}, targets)}
    return Task(name, "none", metric, ["x", "y", "z"], splits)


def answered(of, share, seed):
    targets = of.splits["test"].targets
    wrong = np.random.default_rng(seed).random(len(targets)) > share
    values = [(target + 1) % 3 if bad else target for target, bad in zip(targets, wrong, strict=True)]
    return Result(score(of.metric, values, targets), 0.5, values)


def make_paired_run(folder, tasks=None, *, better=0.0, seed=0, methods=("average", "ties")):
    """A run of the mode lora: its experts, and fusions of all tasks, of which each is better than the one before."""
    tasks = tasks or [task("mail"), task("intent")]
    names = tuple(one.name for one in tasks)

    def outcome(mode, method, subset, share):
        results = {one.name: answered(one, share, [seed, len(method), len(one.name)]) for one in tasks}
        fused = method not in ("expert", "zero_shot")
        weights = {"weights": [0.5, 0.5]} if fused else {}
        selection = "validation" if fused else "none"
        return Outcome(mode, method, "delta" if fused else "", subset, selection, weights, {"test": results})

    chosen = [outcome("-", "zero_shot", (), 0.3), *(outcome("lora", "expert", (name,), 0.95) for name in names)]
    chosen += [outcome("lora", m, names, 0.5 + 0.3 * i + better) for i, m in enumerate(methods)]
    write_outcomes(folder / "cache" / "outcomes" / "key.json", Outcomes(chosen, [None] * len(chosen)))
    write_csv(folder / "scores.csv", rows(chosen, tasks, Bootstrap(tasks, 100, 0)))
    write_scored_rows(folder, tasks, {seed: ["key"]}, 0, 100)
    modes = {"lora": {}}
    (folder / "recipe.yaml").write_text(json.dumps({"name": "made-up", "seed": seed, "modes": modes}))
    return folder
