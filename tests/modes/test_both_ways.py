"""Adapters of an expansion are scored in it and as the ordinary network, wherever they are made, and all say so."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

import tangora
from tangora.adapters.metadata import Metadata
from tangora.errors import AdapterError
from tangora.modes import both_ways
from tangora.modes.both_ways import as_weights, scored_both_ways
from tangora.tasks import TaskModel
from tangora.tasks.splits import sample


@pytest.mark.parametrize("mode", ["tangent", "tangent-moved"])
def test_as_weights_is_what_plain_peft_loads(mode, families, tmp_path):
    case = families["text"]
    folder = case.trained(mode, tmp_path / "a")
    batch = dict(
        case.task.splits["test"].batches(24, TaskModel(case.base.backbone, case.task, case.base).collator)[0][1]
    )
    labels = batch.pop("labels")
    network = PeftModel.from_pretrained(AutoModel.from_pretrained(case.base.config.model), str(folder)).eval()
    with torch.no_grad():
        expected = TaskModel(network, case.task, case.base).eval().logits(batch, labels)
        ordinary = as_weights(tangora.load(folder))
        from tangora.evaluation.evaluator import answering

        with answering(ordinary, case.base) as model_of:
            found = model_of(case.task).eval().logits(batch, labels)
        with answering(tangora.load(folder), case.base) as model_of:
            expanded = model_of(case.task).eval().logits(batch, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert (expanded - expected).abs().max() > 1e-3 * expected.abs().max(), "the two are different functions"


def test_training_scores_both_on_validation_rows(families, tmp_path, monkeypatch):
    case = families["text"]
    monkeypatch.setattr(both_ways, "_ROWS", 3)
    made = tangora.finetune(case.base, case.task, case.config("tangent"), out=tmp_path / "a", progress=False)
    scores = made.metadata.scores
    assert (scores["split"], scores["rows"]) == ("validation", 3)
    assert scores["tasks"].keys() == scores["as_weights"].keys() == {"colors"}
    assert scores == tangora.load(tmp_path / "a").metadata.scores
    split = case.task.splits["validation"]
    few = replace(case.task, splits={"test": split.select(sample(len(split), 3, seed=0))}, fingerprint="few")
    for name, adapter in (("tasks", made), ("as_weights", as_weights(made))):
        assert scores[name] == {"colors": tangora.evaluate(adapter, case.base, few)["colors"].score}
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    own, other = (f"{scores[name]['colors']:.4f}" for name in ("tasks", "as_weights"))
    assert f"Measured on 3 validation rows: colors {own} in the expansion, {other} in the ordinary network." in card
    assert f"| colors | {own} | {other} |" in card
    assert "library_name" not in card


def test_others_are_not_scored_again(families):
    case = families["text"]
    made = tangora.finetune(case.base, case.task, case.config("lora"), progress=False)
    assert made.metadata.scores is None
    tangent = tangora.finetune(case.base, case.task, case.config("tangent"), progress=False)
    without = replace(case.task, splits={"train": case.task.splits["train"]})
    assert scored_both_ways(case.base, tangent, without) is tangent


def test_scores_of_other_tasks_are_refused():
    with pytest.raises(ValueError, match="as_weights must have scores of tasks only"):
        Metadata(scores={"tasks": {"a": 1.0}, "as_weights": {"b": 1.0}})
    with pytest.raises(ValueError, match="as_weights must be a table of numbers"):
        Metadata(scores={"tasks": {"a": 1.0}, "as_weights": {"a": "high"}})


def test_a_run_states_both(workshop):
    """Experts on validation rows, fused adapters on test rows: in the cards, in the terminal and in the report."""
    from rich.console import Console

    from tangora.report import terminal
    from tangora.report.ordinary import EXPERTS, read_both_ways

    run = workshop / "run"
    read = {(one.mode, one.name): one for one in read_both_ways(run)}
    assert read.keys() == {("tangent", EXPERTS), ("tangent", "average"), ("tangent", "task_arithmetic")}
    fused = read["tangent", "average"]
    with (run / "scores.csv").open() as file:
        rows = [
            r for r in csv.DictReader(file) if (r["mode"], r["method"], r["split"]) == ("tangent", "average", "test")
        ]
    for row in (r for r in rows if not r["task"].startswith("mean")):
        assert fused.scores[row["task"]][0] == pytest.approx(float(row["score"]), abs=1e-6)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(terminal(run))
    said = " ".join(captured.get().split())
    assert re.search(r"\(tangent: the experts score [\d.]+ in it and [\d.]+ in plain peft, on validation rows\)", said)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Adapters of an expansion in the ordinary network with their weights" in page
    card = (run / "fused" / "tangent" / "average" / "README.md").read_text(encoding="utf-8")
    assert "Measured on the test split: one" in card
    assert "another function" not in (run / "fused" / "lora" / "average" / "README.md").read_text(encoding="utf-8")


def test_evaluate_scores_both(workshop, monkeypatch):
    from typer.testing import CliRunner

    from tangora.cli import app

    monkeypatch.chdir(workshop)
    adapters = ["run/adapters/tangent/one", "adapters/one"]
    done = CliRunner().invoke(app, ["evaluate", "recipe.yaml", *adapters, "--as-peft", "--json", "-q"])
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)["scores"]
    assert list(scores) == ["zero-shot", adapters[0], f"{adapters[0]}, in plain peft", adapters[1]]
    recipe = tangora.load_recipe("recipe.yaml")
    base = tangora.load_base(recipe.base)
    task = tangora.load_task(recipe.tasks[0], base)
    plain = tangora.evaluate(as_weights(tangora.load(adapters[0])), base, task)["one"]
    assert scores[f"{adapters[0]}, in plain peft"]["tasks"]["one"]["loss"] == pytest.approx(plain.loss, rel=1e-5)
    assert scores[adapters[0]]["tasks"]["one"]["loss"] != pytest.approx(plain.loss, rel=1e-5)


def test_a_damaged_record_is_an_error(tmp_path):
    from tangora.report.ordinary import read_both_ways

    folder = tmp_path / "adapters" / "tangent" / "one"
    folder.mkdir(parents=True)
    (folder / "tangora.json").write_text('{"format": 1, "scores": {"tasks": {}, "as_weights": {"a": 1}}}')
    with pytest.raises(AdapterError, match="as_weights"):
        read_both_ways(tmp_path)
