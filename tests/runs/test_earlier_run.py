"""A run's folder of a version whose keys did not cover code: its adapters are not trained again."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

import tangora
from tangora.runs.context import Context
from tangora.runs.runner import missing
from tangora.support.files import read_json

MACHINERY = ("report_to", "workers", "checkpoint_every")
LATER = ("sharpness", "orthogonality", "progressive", "averaged")  # settings that there were not


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.fixture
def earlier(short_run, tmp_path):
    """The folder as such a version left it: names of that time, no keys of code, no records of jobs."""
    run = shutil.copytree(short_run, tmp_path / "earlier")
    sources = Context.open(short_run).sources
    for task, facts in sources.tasks.items():
        folder = run / "adapters" / "lora" / task
        shutil.rmtree(folder / "heads")
        about = read_json(folder / "tangora.json")
        recipe = {**about["recipe"], "train": "adapter", "linearize": "none"}
        recipe["training"] = {name: value for name, value in recipe["training"].items() if name not in LATER}
        training = {name: value for name, value in recipe["training"].items() if name not in MACHINERY}
        stage = digest(["finetune-1", {**recipe, "training": training}, sources.base, task, facts.fingerprint])
        del about["train"], about["joint"]
        (folder / "tangora.json").write_text(json.dumps({**about, "recipe": recipe, "stage": stage}))
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("train: lora", "train: adapter"))
    shutil.rmtree(run / "cache")
    (run / "run.log").unlink()
    return run


def run_again(recipe, run, monkeypatch):
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    tangora.run(recipe, run, progress=None)
    return (run / "run.log").read_text()


def test_its_adapters_are_not_trained_again(earlier, short_run, short_recipe, monkeypatch):
    monkeypatch.setattr("tangora.modes.finetuning.train_to", None)
    log = run_again(short_recipe, earlier, monkeypatch)
    for task in ("plain", "good"):
        assert f"lora · {task}: taken as it is" in log
        weights = f"adapters/lora/{task}/adapter_model.safetensors"
        assert (earlier / weights).read_bytes() == (short_run / weights).read_bytes()
    for table in ("scores.csv", "candidates.csv", "summary.json", "similarity.json"):
        assert (earlier / table).read_bytes() == (short_run / table).read_bytes()
    assert missing(Context.open(earlier)) == []
    assert "made again" not in log


def test_an_adapter_that_its_metadata_contradict_is_trained_again(earlier, short_recipe, monkeypatch):
    path = earlier / "adapters" / "lora" / "good" / "tangora.json"
    about = read_json(path)
    about["recipe"]["training"]["steps"] = 3
    path.write_text(json.dumps(about))
    log = run_again(short_recipe, earlier, monkeypatch)
    assert "lora · plain: taken as it is" in log
    assert "lora · good: begun" in log
    assert "1 adapter is made again (lora · good): made with other settings" in log
    assert "lora · good: taken as it is" not in log
    assert read_json(path)["recipe"]["training"]["steps"] == 2


def test_a_run_of_this_version_says_nothing_of_the_kind(short_run):
    assert "taken as it is" not in (short_run / "run.log").read_text()
