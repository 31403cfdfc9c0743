"""The recipe bench-text end to end, offline: a tiny encoder, two tasks of the same columns, two steps of each mode."""

from __future__ import annotations

import csv

import pytest

import tangora
import tiny
from tangora.config.recipe import load_recipe

pytestmark = pytest.mark.drawn

TASKS = ("sst2", "trec6")
JOINT = ("joint-lora", "dyadic", "pha", "ca-mtl", "hypergrid")


@pytest.mark.slow
def test_every_way_has_a_row(two_of_text7, tmp_path):
    settings = {
        "data.root": two_of_text7,
        "base.model": tiny.bert(tmp_path / "bert"),
        "training.steps": 2,
        "training.batch_size": 4,
        "fusion.subsets.sizes": "[2]",
        "fusion.methods.polished.polish": "{rank: 4, rows: 8, steps: 2}",
        "fusion.methods.wemoe.route": "{name: wemoe, steps: 2, rows: 8, batch_size: 2}",
        "fusion.methods.e-wemoe.route": "{name: e-wemoe, steps: 2, rows: 8, batch_size: 2}",
        "fusion.methods.dyadic-experts.route": "{name: dyadic-experts, steps: 2, rows: 8, batch_size: 2}",
        **{f"fusion.methods.{name}.steps": 2 for name in ("adamerging", "learned-32", "learned-64")},
        **{f"modes.{name}.training.steps": 2 for name in JOINT},
        **{f"tasks.{name}.limit": "{validation: 8, test: 8}" for name in TASKS},
    }
    whole = load_recipe("bench-text", [f"{key}={value}" for key, value in settings.items()])
    recipe = whole.model_copy(update={"tasks": [task for task in whole.tasks if task.name in TASKS]})
    run = tangora.run(recipe, tmp_path / "run", progress=False)
    with (run / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert {row["mode"] for row in rows if row["method"] == "expert"} == set(recipe.modes)
    assert {row["method"] for row in rows} >= {entry.label for entry in recipe.fusion.methods}
    fused = {(row["mode"], row["method"]) for row in rows if row["method"] not in ("expert", "zero_shot")}
    assert {method for mode, method in fused if mode == "l-lora"} == {"dyadic-experts"}
    assert {mode for mode, _ in fused} == {"lora", "l-lora"}
    page = (run / "report.html").read_text()
    assert "Fuse, route or train jointly" in page
    assert (run / "figures" / "ways.png").is_file()
