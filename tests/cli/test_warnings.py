"""Commands say which rows were cut, on stderr and as JSON, and a run records it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tangora.cli import app
from workshop import done as command

CUT = ("--set", "base.max_length=3")


@pytest.fixture(autouse=True)
def _there(workshop, monkeypatch):
    monkeypatch.chdir(workshop)


def test_a_training_says_it_and_keeps_it(tmp_path):
    out = tmp_path / "one"
    done = command("finetune", "recipe.yaml", "--task", "one", "--out", out, "--set", "training.steps=1", *CUT)
    assert "warning: one: 43 of 43 train rows (100 %) are cut at max_length 3" in done.stderr
    kept = json.loads((out / "training.json").read_text())["cut"]
    assert kept["train"] == {"rows": 43, "of": 43, "max_length": 3}
    assert "warning" not in command("evaluate", "recipe.yaml", "--split", "validation").stderr


def test_a_scoring_says_it_once():
    done = command("evaluate", "recipe.yaml", "--json", *CUT)
    lines = [f"{task}: 12 of 12 test rows (100 %) are cut at max_length 3" for task in ("one", "two")]
    assert json.loads(done.stdout)["warnings"] == lines
    assert [line for line in done.stderr.splitlines() if "warning" in line] == [f"warning: {line}" for line in lines]
    assert "warning" not in command("evaluate", "recipe.yaml", "--quiet", *CUT).stderr


def test_a_run_says_it_and_keeps_it(tmp_path):
    out = tmp_path / "run"
    fewer = ("--set", "modes={lora: {}}", "--set", "fusion.methods=[{method: average}]")
    done = command("run", "recipe.yaml", "--out", out, *CUT, *fewer)
    said = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(said) == 6, "two tasks, three splits"
    assert said[0] == "warning: one: 43 of 43 train rows (100 %) are cut at max_length 3"
    assert [f"warning: {line}" for line in json.loads((out / "summary.json").read_text())["warnings"]] == said
    assert json.loads((out / "run.json").read_text())["cut"]["two"]["test"] == {"rows": 12, "of": 12, "max_length": 3}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<li>two: 12 of 12 test rows (100 %) are cut at max_length 3</li>" in page
    assert "WARNING tangora: two: 12 of 12 test rows (100 %) are cut at max_length 3" in (out / "run.log").read_text()


def test_answers_to_new_rows_say_it(tmp_path):
    done = command("predict", "adapters/one", "--text", "red " * 30, "--text", "blue")
    assert "1 of 2 rows (50 %) is cut at max_length 16" in done.stderr
    assert "cut" not in command("predict", "adapters/one", "--text", "red", "--text", "blue").stderr


def test_nothing_is_written_for_rows_that_are_refused(tmp_path):
    rows = [{"text": f"a {word} photo", "label": word} for word in ["red", "blue"] * 6] + [
        {"text": "sky", "label": "Red"}
    ]
    files = {}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(tmp_path / f"{split}.jsonl")
    before = sorted(tmp_path.iterdir())
    source = f"tasks=[{{name: one, source: {{jsonl: {json.dumps(files)}}}}}]"
    for name in ("finetune", "run"):
        for dry in ([], ["--dry-run"]) if name == "finetune" else (["--dry-run"],):
            task = ["--task", "one"] if name == "finetune" else []
            arguments = [name, "recipe.yaml", "--out", tmp_path / "out", "--set", source, *task, *dry]
            done = CliRunner().invoke(app, [*map(str, arguments)])
            assert done.exit_code != 0
            assert "column label, row 12 (line 13)" in str(done.exception)
            assert sorted(tmp_path.iterdir()) == before
