"""The recipe leaderboard end to end, offline: a tiny encoder, two tasks of the same columns, two steps each."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import tangora
import tiny
from tangora.config.recipe import load_recipe
from tangora.methods import methods

TASKS = ("sst2", "trec6")
# slerp takes two experts, and svd is a sum with a rank.
LEFT_OUT = {"slerp", "svd"}


def test_it_has_every_method_that_fuses_seven_experts():
    entries = load_recipe("leaderboard", ["data.root=x"]).fusion.methods
    used = {part for entry in entries for part in entry.method.split("+")}
    assert used >= set(methods()) - LEFT_OUT


def test_the_experiment_says_of_every_entry_what_it_needs(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    import leaderboard

    for recipe, changes in leaderboard.SUITES.values():
        entries = load_recipe(recipe, ["data.root=x", *changes]).fusion.methods
        found = {e.label: (leaderboard.needs(e, 2, 100), leaderboard._rank(e)) for e in entries}
        assert found["average"] == ("100 labels", "sum")
    found = {e.label: leaderboard.needs(e, 1, 100) for e in load_recipe("leaderboard", ["data.root=x"]).fusion.methods}
    assert found["average"] == "nothing"
    assert found["learned-8"] == "8 labels"
    assert found["adamerging"] == "100 rows"
    assert (found["polished-64"], found["labels-64"]) == ("64 rows", "64 labels")
    assert found["regmean"] == "statistics of rows"


@pytest.mark.slow
def test_every_entry_has_a_row_in_every_mode(two_of_text7, tmp_path, monkeypatch):
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    settings = {
        "data.root": two_of_text7,
        "base.model": tiny.bert(tmp_path / "bert"),
        "training.steps": 2,
        "training.batch_size": 4,
        "fusion.subsets.sizes": "[2]",
        "fusion.statistics.rows": 8,
        "fusion.methods.closed-form-64.polish.rows": 8,
        "fusion.methods.closed-form-64.modes": "[lora]",
        "fusion.methods.lorahub.budget": 3,
        "fusion.methods.enmp-64.population": 4,
        "fusion.methods.enmp-64.generations": 1,
        "modes.joint-lora.training.steps": 2,
        **{
            f"fusion.methods.{name}.polish": "{rank: 4, rows: 8, steps: 2}" for name in ("polished-64", "polished-1000")
        },
        **{
            f"fusion.methods.{name}.polish": "{rank: 4, rows: 8, steps: 2, labels: 1.0, recombined: 0}"
            for name in ("labels-64", "joint-64")
        },
        **{
            f"fusion.methods.{n}.steps": 2 for n in ("adamerging", "samerging", "learned-8", "learned-32", "learned-64")
        },
        **{f"tasks.{name}.limit": "{validation: 8, test: 8}" for name in TASKS},
    }
    whole = load_recipe("leaderboard", [f"{key}={value}" for key, value in settings.items()])
    kept = {"tasks": [task for task in whole.tasks if task.name in TASKS]}
    kept["modes"] = {name: whole.modes[name] for name in ("lora", "tangent", "joint-lora")}
    recipe = whole.model_copy(update=kept)
    run = tangora.run(recipe, tmp_path / "run", progress=False)
    with (run / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    fused = {mode: {row["method"] for row in rows if row["mode"] == mode} - {"expert"} for mode in recipe.modes}
    labels = {mode: {e.label for e in recipe.fusion.methods if mode in (e.modes or [mode])} for mode in recipe.modes}
    assert fused.pop("joint-lora") == set()
    assert fused == {mode: labels[mode] for mode in fused}
