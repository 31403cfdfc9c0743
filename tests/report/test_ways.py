"""Ways to one model, side by side: separate, fused, routed and jointly trained adapters."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors.torch import save_file
from synthetic import TASKS, make_run

from tangora import report
from tangora.adapters.metadata import FusedInfo, Metadata
from tangora.report.data import read_run
from tangora.report.summary import Summary
from tangora.report.tables import ways_table
from tangora.report.ways import DATA, ways


@pytest.fixture
def compared(tmp_path):
    """A run whose mode l-lora is made a joint one, with a routed entry and files of known sizes."""
    run = make_run(tmp_path / "run", with_analyses=False)
    recipe = json.loads((run / "recipe.yaml").read_text())
    recipe["modes"] = {"full": {"train": "full"}, "lora": {"train": "lora"}, "l-lora": {"train": "joint-lora"}}
    grid = {"method": "task_arithmetic", "weights": [0.1, 0.2], "parameters": {}}
    recipe["fusion"] = {
        "methods": [
            {"method": "average", "parameters": {}},
            grid,
            {"method": "ties", "route": {"name": "ties"}},
            {"method": "task_arithmetic", "search": {"name": "lorahub"}},
        ]
    }
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    for index, task in enumerate(TASKS):
        for mode, numbers in (("lora", index), ("l-lora", 0)):
            save_file(
                {"a": torch.full((10,), float(numbers))}, run / "adapters" / mode / task / "adapter_model.safetensors"
            )
    (run / "fused" / "lora" / "average").mkdir(parents=True)
    save_file({"a": torch.zeros(70)}, run / "fused" / "lora" / "average" / "adapter_model.safetensors")
    return run


def test_a_run_that_compares_nothing_has_no_such_section(run):
    summary = Summary(read_run(run))
    assert ways(summary) == []
    assert ways_table(summary) is None
    assert not (run / "figures" / "ways.png").exists()


def test_groups_sizes_and_needs(compared):
    found = {way.name: way for way in ways(Summary(read_run(compared)))}
    assert [way.group for way in found.values()] == sorted(
        (way.group for way in found.values()), key=["separate", "fused", "routed", "joint"].index
    )
    lora, joint = found["LoRA"], found["L-LoRA"]
    assert (lora.group, lora.stored, lora.data) == ("separate", 10.0, DATA[0])
    assert (joint.group, joint.data, joint.added) == ("joint", DATA[4], "train all tasks again")
    assert joint.stored == pytest.approx(10 / 7)  # one adapter of ten numbers for seven tasks
    one = json.loads((compared / "adapters" / "l-lora" / TASKS[0] / "training.json").read_text())
    assert joint.seconds == one["seconds"]  # every task has the record of the one training
    average = found["LoRA, average"]
    assert (average.group, average.stored, average.data) == ("fused", 10.0, DATA[1])
    assert found["LoRA, task arithmetic"].data == DATA[3]  # a grid is chosen from on labelled rows
    assert found["LoRA, TIES"].group == "routed"
    assert found["LoRA, LoraHub"].data == DATA[3]


def test_shares_are_those_of_the_first_separate_mode(compared):
    found = {way.name: way for way in ways(Summary(read_run(compared)))}
    assert found["full"].kept == pytest.approx(1.0)
    rows = list(csv.DictReader((compared / "scores.csv").open()))
    scores = {
        mode: {
            row["task"]: float(row["score"])
            for row in rows
            if row["method"] == "expert" and row["mode"] == mode and row["split"] == "test"
            if row["subset"] == row["task"]
        }
        for mode in ("full", "lora")
    }
    expected = sum(scores["lora"][task] / scores["full"][task] for task in TASKS) / len(TASKS)
    assert found["LoRA"].kept == pytest.approx(expected)


def test_what_is_trained_after_the_experts_counts(compared):
    def of(name):
        return {way.name: way for way in ways(Summary(read_run(compared)))}[name]

    lora, fused = of("LoRA"), compared / "fused" / "lora"
    assert of("LoRA, average").seconds == lora.seconds
    (fused / "average" / "training.json").write_text(json.dumps({"trainable": 70, "seconds": 3.5}))  # of a polish
    polished = of("LoRA, average")
    assert polished.seconds == pytest.approx(lora.seconds + 3.5)
    assert polished.trainable == pytest.approx(lora.trainable + 70 / len(TASKS))
    learned = FusedInfo(
        method="wemoe", space="delta", parents=[], weights=[], selection={"trained": 14, "seconds": 2.0}
    )
    (fused / "ties").mkdir()
    (fused / "ties" / "tangora.json").write_text(
        Metadata(kind="routed", train="routed", fused=learned).model_dump_json()
    )
    routed = of("LoRA, TIES")
    assert routed.seconds == pytest.approx(lora.seconds + 2.0)
    assert routed.trainable == pytest.approx(lora.trainable + 2)


def test_two_stages_of_a_joint_training_count(compared):
    folders = [compared / "adapters" / "l-lora" / task for task in TASKS]
    for folder in folders:
        record = json.loads((folder / "training.json").read_text())
        record |= {"trainable": 5, "seconds": 2.0, "joint": {**record, "trainable": 4, "seconds": 10.0}}
        (folder / "training.json").write_text(json.dumps(record))
    joint = {way.name: way for way in ways(Summary(read_run(compared)))}["L-LoRA"]
    assert joint.seconds == pytest.approx(10 + 2 * len(TASKS))
    assert joint.trainable == pytest.approx(5 + 4 / len(TASKS))


def test_a_fusion_of_jointly_trained_adapters_needs_all_labels_at_once(compared):
    found = {way.name: way for way in ways(Summary(read_run(compared)))}
    fused, joint = found["L-LoRA, average"], found["L-LoRA"]
    assert (fused.data, fused.added) == (DATA[4], "train all tasks again, fuse again")
    assert (fused.seconds, fused.trainable) == (joint.seconds, joint.trainable)


def test_the_page_shows_table_and_figure(compared):
    page = report.build(compared).read_text()
    assert "Fuse, route or train jointly" in page
    assert "numbers stored per task" in page
    assert "labels of all tasks at once" in page
    assert (compared / "figures" / "ways.png").is_file()
