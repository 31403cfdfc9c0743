"""A run on a decoder: modes, statistics, searches, polish and report on two tasks, done once."""

from __future__ import annotations

import csv
import json

import pytest

import tangora
from tangora.config.recipe import Recipe
from tangora.runs.runner import run as run_recipe
from tangora.support.validation import validate

POLISH = {"rank": 3, "rows": 8, "steps": 4, "batch_size": 2, "evaluate_every": 2, "learning_rate": 0.01}


def recipe_of(model, data, **fusion):
    files = {split: f"{data}/{split}.jsonl" for split in ("train", "test")}
    task = {"source": {"jsonl": files}, "limit": {"train": 16, "validation": 4, "test": 6}}
    raw = {
        "name": "sums",
        "base": {"family": "causal-lm", "model": str(model), "max_length": 64, "max_new_tokens": 4, "packing": True},
        "tasks": [{"name": "plain", **task}, {"name": "choice", **task, "choices": "choices"}],
        "lora": {"r": 2, "target_modules": "all-linear"},
        "training": {"steps": 3, "batch_size": 4, "learning_rate": 0.01},
        "modes": {"lora": {}, "l-lora": {"linearize": "module"}, "tangent": {"linearize": "model"}},
        "fusion": fusion,
        "evaluation": {"bootstrap": 100},
    }
    return validate(Recipe, raw, "test")


METHODS = [
    {"method": "task_arithmetic", "weights": [0.5, 1.0]},
    {"method": "regmean", "modes": ["lora"]},
    {"method": "fisher", "modes": ["lora"]},
    {"method": "task_arithmetic", "name": "polished", "weights": [0.5], "polish": POLISH, "modes": ["lora", "l-lora"]},
    {"method": "task_arithmetic", "search": "lorahub", "budget": 2, "modes": ["lora"]},
    {"method": "task_arithmetic", "search": "learned", "labels": 2, "steps": 2, "modes": ["lora"]},
    {"method": "task_arithmetic", "search": "adamerging", "steps": 2, "rows_per_step": 2, "modes": ["lora"]},
    {"method": "task_arithmetic", "search": "convex", "labels": 2, "modes": ["tangent"]},
]


@pytest.fixture(scope="module")
def finished(tiny_llama, sum_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("language") / "run"
    run_recipe(recipe_of(tiny_llama, sum_data, methods=METHODS), out)
    return out


def rows(run, name):
    with (run / name).open() as file:
        return list(csv.DictReader(file))


def test_every_mode_and_method_is_scored(finished):
    found = {(row["mode"], row["method"]) for row in rows(finished, "scores.csv")}
    assert {("tangent", "convex"), ("lora", "learned"), ("lora", "adamerging"), ("lora", "lorahub")} <= found
    assert {("lora", "regmean"), ("lora", "fisher"), ("lora", "polished"), ("l-lora", "polished")} <= found
    assert {mode for mode, method in found if method == "task_arithmetic"} == {"lora", "l-lora", "tangent"}


def test_the_score_of_an_adapter_is_that_of_its_answers(finished, tiny_llama, sum_data):
    """By `tangora.predict` and the targets themselves."""
    recipe = recipe_of(tiny_llama, sum_data, methods=METHODS)
    base = tangora.load_base(recipe.base)
    for config in recipe.tasks:
        task = tangora.load_task(config, base, seed=recipe.seed)
        for mode in ("lora", "tangent"):
            answers = tangora.predict(finished / "adapters" / mode / task.name, base, task)
            share = sum(a == t for a, t in zip(answers, task.splits["test"].targets, strict=True)) / len(answers)
            (scored,) = {
                float(row["score"])
                for row in rows(finished, "scores.csv")
                if (row["mode"], row["method"], row["subset"], row["task"], row["split"])
                == (mode, "expert", task.name, task.name, "test")
            }
            assert scored == pytest.approx(share), (mode, task.name)


def test_the_polish_follows_answers_that_the_experts_generated(finished):
    record = json.loads(next((finished / "fused" / "lora").glob("polished*/tangora.json")).read_text())["polished"]
    assert record["rows"] == {"plain": 8, "choice": 8}
    assert 0 < record["mass"] <= 1
    assert all(value > 0 for value in record["before"].values())


def test_the_report_shows_examples_with_prompts(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "polished" in page
    assert "+" in page


def test_answers_that_never_end_are_said(finished):
    found = json.loads((finished / "summary.json").read_text())["warnings"]
    assert any(line.startswith("zero_shot, plain: ") and "have no end within 4 tokens" in line for line in found)
    assert not any(", choice: " in line for line in found), "choices are not generated"
