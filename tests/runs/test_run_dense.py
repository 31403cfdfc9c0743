"""A run of the recipe bench-dense with tiny settings: every mode, fusions, tables and the report."""

from __future__ import annotations

import csv
import json

import pytest

import tangora
from tangora import quickstart
from tangora.config.recipe import load_recipe
from tangora.evaluation.evaluator import ScoreStore
from tangora.quickstart.tiny_swin import SwinSettings

TASKS = {"segmentation": "mean_iou", "edges": "f_measure", "saliency": "f_measure", "distance": "rmse_map"}
MODES = ["bottleneck", "hyperformer", "joint-lora", "lora", "polyhistor", "polyhistor-lite"]


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    tiny = SwinSettings(width=8, depths=(1, 1), heads=(1, 2), steps=2, batch_size=4, warmup=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        return quickstart.swin(settings=tiny)


@pytest.fixture(scope="module")
def done(swin, tmp_path_factory):
    """The folder of a run with few rows and steps."""
    settings = ["training.steps=4", "training.batch_size=4", "training.evaluate_every=null", "base.width=4"]
    settings += [f"base.model={swin}", "evaluation.bootstrap=100", "fusion.subsets.sizes=[2]"]
    settings += ["fusion.methods=[{method: average}, {method: task_arithmetic, weights: [0.3, 0.6]}]"]
    settings += ["fusion.subsets.per_size=1"]
    for mode in MODES:
        settings += [f"modes.{mode}.training={{steps: 4, evaluate_every: null}}"]
    for number in range(4):
        settings += [f"tasks.{number}.limit={{train: 12, validation: 6, test: 6}}"]
    folder = tmp_path_factory.mktemp("runs") / "dense"
    tangora.run(load_recipe("bench-dense", settings), out=folder, progress=False)
    return folder


def test_every_mode_is_scored_on_every_task_by_its_metric(done):
    with (done / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    experts = {(row["mode"], row["task"]): row for row in rows if row["method"] == "expert" and row["split"] == "test"}
    for mode in MODES:
        for task, metric in TASKS.items():
            row = experts[mode, task]
            assert row["metric"] == metric
            assert float(row["ci_low"]) <= float(row["ci_high"])
    fused = {row["mode"] for row in rows if row["method"] in ("average", "task_arithmetic")}
    assert fused == {"lora"}


def test_maps_are_read_again_from_the_files_of_scores(done):
    store = ScoreStore.read(done / "cache" / "scores.jsonl")
    values = [store.get(key).values[0] for key in store]
    assert {value.dtype.name for value in values} == {"float32", "uint8"}
    assert {value.shape for value in values} == {(32, 32)}


def test_the_report_shows_the_tasks(done):
    page = (done / "report.html").read_text(encoding="utf-8")
    for text in [*TASKS, *TASKS.values(), *MODES]:
        assert text in page
    assert json.loads((done / "summary.json").read_text())
