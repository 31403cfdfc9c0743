"""A mode of another package, in a run through a recipe: one training for all tasks."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

import plugins
from tangora.adapters.adapter import load
from tangora.config.recipe import load_recipe
from tangora.errors import RecipeError
from tangora.runs.runner import run
from tangora.support.seams import MODES
from tangora.testing import check_mode


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = plugins.install(tmp_path_factory.mktemp("site"), "mode")
    with plugins.installed(folder, MODES):
        yield folder


@pytest.fixture(scope="module")
def recipe(site, tiny_bert, text_data, tmp_path_factory):
    files = {"train": f"{text_data}/train.parquet", "test": f"{text_data}/test.parquet"}
    tasks = [{"name": n, "source": {"parquet": files}, "labels": ["red", "green", "blue"]} for n in ("one", "two")]
    raw = {
        "name": "joint",
        "base": {"family": "text-zero-shot", "model": str(tiny_bert), "max_length": 16},
        "tasks": tasks,
        "lora": {"r": 2},
        "training": {"steps": 4, "batch_size": 4},
        "modes": {"lora": {}, "together": {"train": "shared-lora"}},
        "fusion": {"methods": [{"method": "average"}, {"method": "task_arithmetic", "weights": [0.5, 1.0]}]},
        "evaluation": {"bootstrap": 100},
    }
    path = tmp_path_factory.mktemp("recipe") / "joint.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_it_keeps_the_promises(site):
    check_mode(MODES.get("shared-lora"))


def test_it_trains_once_and_stands_in_the_tables_and_the_report(recipe, tmp_path):
    out = run(load_recipe(recipe), tmp_path / "run")
    folders = {task: out / "adapters" / "together" / task for task in ("one", "two")}
    adapters = [load(folder) for folder in folders.values()]
    assert len({adapter.fingerprint for adapter in adapters}) == 1
    assert len({adapter.metadata.stage for adapter in adapters}) == 1
    assert {adapter.metadata.train for adapter in adapters} == {"shared-lora"}
    with (out / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "together"]
    tested = {(r["method"], r["task"]): r["score"] for r in rows if r["split"] == "test"}
    for task in ("one", "two"):
        assert tested["average", task] == tested["expert", task], "the average of equal adapters is the adapter"
    assert "together" in (out / "report.html").read_text()
    fused = json.loads((out / "fused" / "together" / "average" / "tangora.json").read_text())
    assert fused["train"] == "shared-lora"
    before = {task: (folder / "training.json").stat().st_mtime_ns for task, folder in folders.items()}
    run(load_recipe(recipe), out)
    assert {task: (folder / "training.json").stat().st_mtime_ns for task, folder in folders.items()} == before


def test_a_mode_that_is_not_installed_is_named(recipe):
    path = recipe.with_name("typo.yaml")
    path.write_text(recipe.read_text().replace("shared-lora", "shared-loro"))
    with pytest.raises(RecipeError, match=r"no such mode.*shared-loro.*shared-lora"):
        load_recipe(path)
