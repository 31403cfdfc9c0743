"""A recipe with methods that use statistics: these are collected from train rows, kept and recorded."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

import tangora
from tangora.config.recipe import load_recipe
from tangora.errors import FusionError
from tangora.fusion.statistics import load as load_statistics
from tangora.runs.checks import check_methods
from tangora.runs.context import Context
from tangora.runs.execution import perform
from tangora.runs.stages import statistics as stage


@pytest.fixture(scope="module")
def path(tiny_bert, text_data, tmp_path_factory):
    files = {"train": f"{text_data}/train.parquet", "test": f"{text_data}/test.parquet"}
    task = {"source": {"parquet": files}, "labels": ["red", "green", "blue"]}
    raw = {
        "name": "known",
        "base": {"family": "text-zero-shot", "model": str(tiny_bert)},
        "tasks": [{"name": "plain", **task}, {"name": "good", **task, "templates": ["good {}"]}],
        "lora": {"r": 2},
        "training": {"steps": 2, "batch_size": 8, "learning_rate": 0.02},
        "modes": {"lora": {}, "l-lora": {"linearize": "module"}},
        "fusion": {
            "methods": [
                {"method": "average"},
                {"method": "regmean", "parameters": {"off_diagonal": [0.5, 0.9]}},
                {"method": "fisher", "modes": ["lora"], "weights": [0.5, 1.0]},
            ],
            "statistics": {"rows": 20, "batch_size": 8},
        },
        "evaluation": {"bootstrap": 100},
    }
    path = tmp_path_factory.mktemp("recipe") / "known.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def finished(path, tmp_path_factory):
    return tangora.run(load_recipe(path), tmp_path_factory.mktemp("runs") / "whole")


def test_every_expert_has_what_its_mode_needs(finished):
    for mode, kinds in (("lora", ["gram", "fisher"]), ("l-lora", ["gram"])):
        for task in ("plain", "good"):
            about = load_statistics(finished / "statistics" / mode / f"{task}.safetensors").about
            adapter = tangora.load(finished / "adapters" / mode / task)
            assert (about.kinds, about.split, about.rows, about.task) == (kinds, "train", 20, task)
            assert about.adapter == adapter.fingerprint


def test_they_are_scored_and_told_of(finished):
    with (finished / "scores.csv").open() as file:
        seen = {(r["mode"], r["method"]) for r in csv.DictReader(file)}
    assert {("lora", "regmean"), ("l-lora", "regmean"), ("lora", "fisher")} <= seen
    assert ("l-lora", "fisher") not in seen
    recorded = json.loads((finished / "run.json").read_text())["statistics"]
    assert recorded["lora"]["plain"] == {"kinds": ["gram", "fisher"], "split": "train", "rows": 20, "labels": "every"}
    page = (finished / "report.html").read_text()
    assert "Methods that are given statistics (fisher and gram) saw at most 20 train rows of every task." in page
    card = (finished / "fused" / "lora" / "regmean" / "README.md").read_text()
    assert "| statistics of plain | gram, 20 train rows, " in card


def test_a_fused_adapter_can_be_made_again_without_data(finished):
    saved = tangora.load(finished / "fused" / "lora" / "regmean")
    about = saved.metadata.fused
    folders = [finished / "adapters" / "lora" / parent.name for parent in about.parents]
    files = [finished / "statistics" / "lora" / f"{parent.name}.safetensors" for parent in about.parents]
    again = tangora.fuse(folders, about.method, about.weights, statistics=files, **about.parameters)
    assert again.fingerprint == saved.fingerprint


def test_nothing_is_collected_twice_and_damage_is_mended(path, finished, monkeypatch):
    calls = []
    original = stage.collect_statistics

    def counted(base, task, adapter, **options):
        calls.append((task.name, options["kinds"]))
        return original(base, task, adapter, **options)

    monkeypatch.setattr(stage, "collect_statistics", counted)

    def collect(recipe):
        """Do the jobs that are missing; return all of them."""
        context = Context(finished, recipe)
        jobs = [job for job in context.plan if isinstance(job, stage.StatisticsJob)]
        for job in jobs:
            perform(job, context, lambda event: None)
        return context.statistics("lora") | context.statistics("l-lora")

    recipe = load_recipe(path)
    collect(recipe)
    assert calls == []
    damaged = finished / "statistics" / "lora" / "plain.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-4])
    collect(recipe)
    assert calls == [("plain", ["gram", "fisher"])]
    assert damaged.read_bytes() == whole
    made = collect(load_recipe(path, ["fusion.statistics.rows=10"]))
    assert len(calls) == 5
    assert {one.about.rows for one in made.values()} == {10}


def test_a_space_that_has_no_statistics_is_refused_before_anything_is_trained(path):
    recipe = load_recipe(path, ["fusion.methods.regmean.spaces=[delta, core]"])
    with pytest.raises(FusionError, match=r"regmean: .*, got 'core' at fusion\.methods\.regmean\.spaces"):
        check_methods(recipe)


def test_a_mode_that_leaves_nothing_to_fuse_has_none(short_recipe):
    from tangora.runs.stages.statistics import kinds_of

    raw = short_recipe.model_dump(mode="json")
    raw["modes"] = {"lora": {}, "joint-lora": {"train": "joint-lora"}}
    raw["fusion"]["methods"] = [{"method": "regmean"}]
    recipe = type(short_recipe).model_validate(raw)
    assert kinds_of(recipe, "lora") == ["gram"]
    assert kinds_of(recipe, "joint-lora") == []
