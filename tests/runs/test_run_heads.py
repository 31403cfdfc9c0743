"""Whole runs with trained heads: classes beside labels beside numbers, and tags."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import tangora
from tangora.adapters.adapter import load
from tangora.config.recipe import Recipe
from tangora.runs.context import Context
from tangora.runs.runner import missing
from tangora.support.validation import validate

METRICS = ["micro_f1", "accuracy"]


def recipe(family, model, tasks, methods):
    return validate(
        Recipe,
        {
            "name": "heads",
            "base": {"family": family, "model": str(model), "max_length": 16},
            "tasks": tasks,
            "lora": {"r": 2, "target_modules": ["query", "value"]},
            "training": {"steps": 12, "batch_size": 12, "learning_rate": 0.03, "checkpoint_every": None},
            "modes": {"lora": {}, "tangent": {"train": "tangent"}},
            "fusion": {"methods": methods, "statistics": {"rows": 8}},
            "evaluation": {"bootstrap": 100},
        },
        "test",
    )


def scores(folder, **where):
    """(task, metric) -> score on the test rows."""
    with (folder / "scores.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == "test" and not r["task"].startswith("mean")]
    return {(r["task"], r["metric"]): float(r["score"]) for r in rows if all(r[k] == v for k, v in where.items())}


@pytest.fixture(scope="module")
def source(several_data):
    return {"jsonl": {split: str(several_data / f"{split}.jsonl") for split in ("train", "test")}}


@pytest.fixture(scope="module")
def run(tiny_bert, source, tmp_path_factory):
    tasks = [
        {"name": "same", "source": source, "text_pair": "pair", "label": "same"},
        {"name": "colors", "source": source, "problem": "multi", "label": "colors", "metrics": METRICS},
        {"name": "count", "source": source, "problem": "regression", "label": "count", "metric": "rmse"},
    ]
    methods = [
        {"method": "average"},
        {"method": "task_arithmetic", "weights": [0.3, 1.0]},
        {"method": "fisher", "modes": ["lora"]},
        {"method": "task_arithmetic", "search": "lorahub", "budget": 2, "modes": ["lora"]},
        {"method": "average", "modes": ["lora"], "polish": {"rank": 2, "rows": 8, "steps": 2}},
    ]
    chosen = recipe("text-classification", tiny_bert, tasks, methods)
    folder = tmp_path_factory.mktemp("runs") / "rows"
    return tangora.run(chosen, folder, progress=False), chosen


def test_every_problem_is_trained_fused_and_scored(run):
    folder, chosen = run
    assert missing(Context.open(folder)) == []
    own = scores(folder, mode="lora", method="expert", subset="colors")
    assert {key for key in own if key[0] == "colors"} == {("colors", "micro_f1"), ("colors", "accuracy")}
    zero = scores(folder, method="zero_shot")
    assert zero["count", "rmse"] > scores(folder, mode="lora", method="expert", subset="count")["count", "rmse"]
    fused = load(folder / "fused" / "lora" / "average")
    assert set(fused.heads) == set(fused.records) == {"same", "colors", "count"}
    base = tangora.load_base(chosen.base)
    for mode in ("lora", "tangent"):
        for task in (tangora.load_task(config, base, seed=chosen.seed) for config in chosen.tasks):
            result = tangora.evaluate(folder / "fused" / mode / "average", base, task)[task.name]
            written = scores(folder, mode=mode, method="average")
            assert written[task.name, task.metric] == pytest.approx(result.score, abs=1e-5)
    polished = load(folder / "fused" / "lora" / "average-polished")
    assert torch.equal(polished.heads["count"]["classifier.bias"], fused.heads["count"]["classifier.bias"])
    assert (folder / "report.html").is_file()
    record = json.loads((folder / "adapters" / "lora" / "colors" / "heads" / "colors.json").read_text())
    assert record["labels"] == ["blue", "green", "red"]


def test_tags_are_searched_on_columns_and_scored(tiny_bert, source, tmp_path):
    tasks = [{"name": name, "source": source, "metrics": ["span_f1", "tag_accuracy"]} for name in ("one", "two")]
    methods = [
        {"method": "task_arithmetic", "search": "convex", "modes": ["tangent"]},
        {"method": "task_arithmetic", "search": "samerging", "steps": 2, "modes": ["lora"]},
    ]
    folder = tangora.run(recipe("token-classification", tiny_bert, tasks, methods), tmp_path / "run", progress=False)
    found = scores(folder, mode="tangent", method="convex")
    assert found["one", "tag_accuracy"] > scores(folder, method="zero_shot")["one", "tag_accuracy"]
    assert ("two", "span_f1") in scores(folder, mode="lora", method="samerging")
