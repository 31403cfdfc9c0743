from __future__ import annotations

import json
import math

import pytest
from synthetic import COLUMNS, TASKS, make_run, write_csv

from tangora.errors import FileError
from tangora.report.data import read_run, read_scores


def test_reads_every_file(run):
    read = read_run(run)
    assert read.modes == ["full", "lora", "l-lora"]
    assert read.tasks == TASKS
    assert read.missing == {}
    assert len(read.training) == 21
    assert read.candidates[0].weights == [0.0] * 7
    assert read.info["recipe"] == "text7"
    assert ("lora", "ties", "delta", "validation", 7) in read.summary


def test_an_empty_cell_is_none_and_booleans_are_read(run):
    zero, *_ = read_scores(run / "scores.csv")
    assert (zero.method, zero.normalized, zero.in_subset) == ("zero_shot", None, False)
    assert any(r.in_subset for r in read_scores(run / "scores.csv"))


def test_says_why_optional_files_are_missing(tmp_path):
    make_run(tmp_path / "run", TASKS[:2])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "scores.csv").write_bytes((tmp_path / "run" / "scores.csv").read_bytes())
    missing = read_run(tmp_path / "bare").missing
    assert set(missing) == {"candidates.csv", "similarity.json", "run.json", "recipe.yaml", "training.json"}
    assert all(reason.startswith("there is no ") for reason in missing.values())


def test_no_scores(tmp_path):
    with pytest.raises(FileError, match=r"the run has no scores at .*scores\.csv\. Run it to the end"):
        read_run(tmp_path)


def test_a_missing_column(tmp_path):
    write_csv(tmp_path / "scores.csv", COLUMNS[:-2], [])
    with pytest.raises(FileError, match="no column ci_low, ci_high"):
        read_run(tmp_path)


def test_a_cell_that_is_no_number(tmp_path):
    row = dict.fromkeys(COLUMNS, "1") | {"score": "high"}
    write_csv(tmp_path / "scores.csv", COLUMNS, [row])
    with pytest.raises(FileError, match=r"could not convert string to float: 'high'\) at .*scores\.csv: 2"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("similarity.json", '{"lora": {"tasks": ["a", "b"], "cosine": [[1.0]]}}', "not 2 by 2"),
        ("similarity.json", '{"lora": {"tasks": ["a"]}}', "cosine"),
        ("similarity.json", "[1]", "expected a JSON object"),
        ("summary.json", '{"rows": [{"mode": "lora"}]}', "method"),
        ("run.json", "{", "not readable as JSON"),
        ("recipe.yaml", "a: [", "not readable as YAML"),
        ("candidates.csv", "mode,method\n", "no column space"),
        ("analysis/planes.json", '{"entries": [{"mode": "lora"}]}', "tasks"),
        (
            "analysis/signs.json",
            '{"entries": [{"mode": "m", "tasks": ["a"], "experts": ["x"], "counted": [[0], [0]], "weighted": [[0]]}]}',
            "not 1 by 1",
        ),
        ("adapters/lora/a/training.json", '{"steps": [1, 2], "loss": [0.5]}', "2 steps and 1 losses"),
    ],
)
def test_a_file_that_cannot_be_right(tmp_path, name, text, match):
    write_csv(tmp_path / "scores.csv", COLUMNS, [])
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=match):
        read_run(tmp_path)


def test_null_cosines_are_nan(tmp_path):
    write_csv(tmp_path / "scores.csv", COLUMNS, [])
    (tmp_path / "similarity.json").write_text(json.dumps({"lora": {"tasks": ["a"], "cosine": [[None]]}}))
    assert math.isnan(read_run(tmp_path).similarity["lora"].cosine[0][0])


def test_analyses_of_experts_that_were_trained_anew_are_left_out(tmp_path):
    run = make_run(tmp_path / "run", TASKS[:2])
    assert len(read_run(run).analyses.signs) == 3
    metadata_file = run / "adapters" / "lora" / TASKS[1] / "tangora.json"
    metadata_file.write_text(json.dumps({"format": 1, "stage": "lora"}))
    assert len(read_run(run).analyses.signs) == 3
    metadata_file.write_text(json.dumps({"format": 1, "stage": "another"}))
    analyses = read_run(run).analyses
    assert [entry.mode for entry in analyses.signs] == ["full", "l-lora"]
    assert "lora" not in {plane.mode for plane in analyses.planes}
    assert {(p.mode, p.task) for p in analyses.paths} == {
        (m, t) for m in ("full", "lora", "l-lora") for t in TASKS[:2]
    } - {("lora", TASKS[1])}
