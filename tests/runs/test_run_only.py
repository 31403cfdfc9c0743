"""A part of a run: jobs by a text in their label, what they read, and nothing else; the rest later."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tangora.errors import ArgumentError
from tangora.runs.context import Context
from tangora.runs.runner import missing


def labels_left(run):
    context = Context.open(run)
    return [job.label for job in missing(context)]


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))


def test_experts_alone_then_the_rest_ends_as_a_whole_run(short_recipe, short_run, tmp_path, no_report):
    run = tangora.run(short_recipe, tmp_path / "run", only=["lora · plain"])
    left = labels_left(run)
    assert (run / "adapters" / "lora" / "plain").is_dir()
    assert not (run / "adapters" / "lora" / "good").exists()
    assert not (run / "scores.csv").exists()
    assert "lora · good" in left
    tangora.run(short_recipe, run)
    assert labels_left(run) == []
    assert (run / "scores.csv").read_bytes() == (short_run / "scores.csv").read_bytes()


def test_what_a_job_reads_is_done_with_it_and_done_parts_stay(short_copy, short_recipe, no_report):
    for path in (*(short_copy / "cache" / "outcomes").glob("*.json"), short_copy / "scores.csv"):
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in (short_copy / "adapters").rglob("*.safetensors")}
    tangora.run(short_recipe, short_copy, only=["fuse ·"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (short_copy / "scores.csv").exists()
    assert all("fuse" not in label and "score ·" not in label for label in labels_left(short_copy))


def test_the_command_says_how_much_is_done(short_copy, short_recipe, no_report):
    (short_copy / "scores.csv").unlink()
    recipe = str(short_copy / "recipe.yaml")
    made = CliRunner().invoke(app, ["run", recipe, "--out", str(short_copy), "--only", "zero-shot", "--json"])
    assert made.exit_code == 0, made.output
    counted = json.loads(made.stdout)["jobs"]
    assert counted["left"] == len(labels_left(short_copy)) > 0
    status = json.loads(CliRunner().invoke(app, ["status", str(short_copy), "--json"]).stdout)
    assert status["all"]["left"] == counted["left"]


def test_a_text_of_no_job_is_refused_and_labels_are_named(short_copy, short_recipe):
    before = sorted(path for path in short_copy.rglob("*") if path.is_file())
    with pytest.raises(
        ArgumentError, match=r"no job has this in its label, got 'knots' at --only\. Labels are lora · "
    ):
        tangora.run(short_recipe, short_copy, only=["zero-shot", "knots"])
    after = sorted(path for path in short_copy.rglob("*") if path.is_file())
    assert [path for path in before if path not in after] == []


def test_tables_of_another_recipe_are_named(short_copy, short_recipe, no_report):
    raw = short_recipe.model_dump(mode="json")
    raw["fusion"]["methods"].append({"method": "task_arithmetic", "name": "half", "weights": [0.5]})
    recipe = short_copy.parent / "other.yaml"
    recipe.write_text(json.dumps(raw))
    arguments = ["run", str(recipe), "--out", str(short_copy), "--overwrite", "--only", "zero-shot"]
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 0, made.output
    stale = "scores.csv, summary.json, candidates.csv, similarity.json"
    assert stale in (short_copy / "run.log").read_text()
    said = " ".join(made.output.split())
    assert "of an earlier recipe or version; the command without --only makes them again" in said
    whole = CliRunner().invoke(app, [*arguments[:-2]])
    assert whole.exit_code == 0, whole.output
    assert "half" in (short_copy / "scores.csv").read_text()
    again = CliRunner().invoke(app, arguments)
    assert "earlier recipe" not in again.output
