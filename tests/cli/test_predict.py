"""``tangora predict``: rows as arguments and as files, answers as a table, as JSON, and as files beside the rows."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import pytest
import torch

import tangora
from tangora.cli import commands as cli
from tangora.cli import completion
from tangora.evaluation import predictor as predicting
from tangora.progress import Progress


@pytest.fixture
def program(capsys):
    """Run a command in this process -> (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tangora", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def adapter(families, tmp_path_factory):
    return families["text"].trained("lora", tmp_path_factory.mktemp("adapters") / "colors")


@pytest.fixture(scope="module")
def known(families, adapter):
    """The answers to the rows of the test split."""
    return tangora.predictor(adapter, base=families["text"].base)(families["text"].rows)


def probabilities(answers):
    return pytest.approx(answers.probability.tolist(), abs=1e-6)


def test_texts(program, adapter, known, families):
    rows = families["text"].rows[:3]
    code, out, _ = program("predict", adapter, *[part for text in rows for part in ("--text", text)])
    assert code == 0
    assert "colors: 3 rows" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    for text, answer, probability in zip(rows, known[:3], known.probability.tolist(), strict=False):
        assert any(text in line and answer in line and f"{probability:.3f}" in line for line in out.splitlines())
    code, out, _ = program("predict", adapter, "--text", rows[0], "--json", "--task", "colors", "--probabilities")
    document = json.loads(out)
    assert (document["task"], document["labels"]) == ("colors", ["red", "green", "blue"])
    (answer,) = document["answers"]
    assert answer.pop("answer") == known[0]
    assert answer.pop("probability") == pytest.approx(float(known.probability[0]), abs=1e-6)
    expected = dict(
        zip(["probability_red", "probability_green", "probability_blue"], known.probabilities[0], strict=True)
    )
    assert answer == {name: pytest.approx(float(value), abs=1e-6) for name, value in expected.items()}


def test_images(program, families, image_data, tmp_path):
    case = families["image"]
    folder = case.trained("lora", tmp_path / "patches")
    files = sorted((image_data / "test" / "green").iterdir())[:3]
    expected = tangora.predictor(folder, base=case.base)([str(file) for file in files])
    _, out, _ = program("predict", folder, *[part for file in files for part in ("--image", file)], "--json", "-q")
    assert [one["answer"] for one in json.loads(out)["answers"]] == expected.answers
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in files:
        shutil.copy(file, flat)
    code, out, err = program("predict", folder, "--in", flat, "--out", tmp_path / "answers.csv", "-q")
    assert code == 0, err
    with (tmp_path / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(flat / file.name) for file in files]
    assert [row["answer"] for row in rows] == expected.answers
    code, out, err = program("predict", folder, "--in", image_data / "test.npz", "-q", "--out", tmp_path / "a.jsonl")
    assert "left out, since they are neither texts nor numbers: images" in out
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows] == case.task.splits["test"].targets
    _, out, _ = program("predict", folder, "--in", image_data / "test", "-q")
    assert "the first 20 of 24 rows" in out


def test_rows_of_another_kind_are_refused(program, families, adapter, image_data, tmp_path):
    """The name of a picture would be answered as a text."""
    picture = next((image_data / "test" / "green").iterdir())
    code, _, err = program("predict", adapter, "--image", picture)
    assert (code, "the task reads texts" in err, "ive --text, or --in FILE" in err) == (2, True, True)
    folder = families["image"].trained("lora", tmp_path / "patches")
    code, _, err = program("predict", folder, "--text", "green")
    assert (code, "the task reads images" in err, "ive --image, or --in FILE" in err) == (2, True, True)


def test_a_generated_text_has_no_probability(program, families, tmp_path):
    case = families["answer"]
    folder = case.trained("lora", tmp_path / "answers")
    expected = tangora.predictor(folder, base=case.base)(case.rows[:2])
    _, out, _ = program("predict", folder, "--text", case.rows[0], "--text", case.rows[1], "--json", "-q")
    assert json.loads(out)["answers"] == [{"answer": answer} for answer in expected]
    code, out, _ = program("predict", folder, "--text", case.rows[0], "-q")
    assert (code, "probability" in out) == (0, False)


@pytest.mark.parametrize(("ends", "said"), [(False, "are cut at max_new_tokens, before an end"), (True, "are empty")])
def test_answers_without_an_end_and_empty_answers_are_named(families, tmp_path, ends, said):
    class Notes(Progress):
        def note(self, text):
            notes.append(text)

    notes = []
    case = families["language"]
    predict = tangora.predictor(case.trained("lora", tmp_path / "answers"), base=case.base)
    token = case.base.backbone.generation_config.eos_token_id if ends else 7

    def always(_, inputs, output):
        output.logits = torch.nn.functional.one_hot(
            torch.full(output.logits.shape[:-1], token), output.logits.shape[-1]
        ).float()
        return output

    hook = case.base.backbone.register_forward_hook(always)
    try:
        predict(case.rows[:2], progress=Notes())
    finally:
        hook.remove()
    assert [note for note in notes if said in note] == notes[:1]
    assert notes[0].startswith("2 of 2 answers (100 %) ")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files_keep_their_columns(program, adapter, known, text_data, tmp_path, kind, suffix, monkeypatch):
    from datasets import Dataset

    monkeypatch.setattr(predicting, "_BLOCK", 7)  # several blocks
    out = tmp_path / f"answers.{suffix}"
    code, shown, err = program("predict", adapter, "--in", text_data / f"test.{kind}", "--out", out, "-q")
    assert code == 0, err
    assert "answered 24 rows" in shown
    assert f"answers: {out}" in shown
    read = {"csv": Dataset.from_csv, "jsonl": Dataset.from_json, "parquet": Dataset.from_parquet}
    before = read[kind](str(text_data / f"test.{kind}"), cache_dir=str(tmp_path / "c1"))
    after = read[suffix](str(out), cache_dir=str(tmp_path / "c2"))
    assert after.column_names == [*before.column_names, "answer", "probability"]
    assert list(after["answer"]) == known.answers
    assert list(after["probability"]) == probabilities(known)
    for name in before.column_names:
        kept = [str(value) for value in after[name]] if kind == "csv" else list(after[name])
        assert kept == ([str(value) for value in before[name]] if kind == "csv" else list(before[name])), name


def test_a_cell_stays_as_it_is(program, adapter, tmp_path):
    text = 'id,text,when,ok,note\n007,red,2020-01-01,TRUE,"a ""b"", c\nd"\n1e3,blue sky,NA,,\n'
    (tmp_path / "rows.csv").write_text(text)
    assert program("predict", adapter, "--in", tmp_path / "rows.csv", "--out", tmp_path / "a.csv", "-q")[0] == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = [row[:5] for row in csv.reader(file)]
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert rows == list(csv.reader(file))
    lines = [
        '{"text": "red", "when": "2020-01-01T00:00:00", "tags": [{"b": 1.0}], "big": 12345678901}',
        '{"text":"x"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n\n".join(lines))
    assert program("predict", adapter, "--in", tmp_path / "rows.jsonl", "--out", tmp_path / "a.jsonl", "-q")[0] == 0
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("answer", "probability")} for row in written] == [
        json.loads(line) for line in lines
    ]
    assert program("predict", adapter, "--in", tmp_path / "rows.jsonl", "--out", tmp_path / "b.csv", "-q")[0] == 0
    with (tmp_path / "b.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["tags"], first["big"], second["big"]) == ('[{"b": 1.0}]', "12345678901", "")


def test_a_bad_row_is_named_and_nothing_is_written(program, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "_BLOCK", 2)
    rows = [{"text": "red"}] * 5 + [{"text": None}, {"text": "blue"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = sorted(tmp_path.iterdir())
    code, out, err = program("predict", adapter, "--in", tmp_path / "rows.jsonl", "--out", tmp_path / "a.csv", "-q")
    assert (code, out) == (2, "")
    assert "row 5" in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there are no rows, got 'none'"),
        (["--text", "a", "--in", "FILE"], "rows are given in one way, got '--text, --in'"),
        (["--text", "a", "--out", "answers.txt"], "the kind of the output is not clear, got 'answers.txt'"),
        (["--text", "a", "--overwrite"], "nothing is written"),
        (["--in", "FILE", "--out", "there.csv"], "the output exists"),
        (["--in", "FILE", "--out", "FILE", "--overwrite"], "the output is an input"),
        (["--in", "answered.csv", "--out", "x.csv"], "a column of a name that is added, got 'answer'"),
        (["--in", "nothing.csv"], "file not found"),
        (["--in", "other.csv"], "unknown column for text, got 'text'"),
        (["--text", "a", "--task", "shapes"], "no such task is recorded"),
        (["--text", "a", "--base", "nowhere/at/all"], "the base cannot be loaded"),
        (["--text", "a", "--device", "cuda:77"], "the device cannot be used"),
        (["--text", "a", "--dtype", "int8"], "no dtype of forward passes"),
    ],
)
def test_refusals(program, adapter, text_data, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    shutil.copy(text_data / "test.csv", "rows.csv")
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "other.csv").write_text("sentence\nred\n")
    (tmp_path / "answered.csv").write_text("text,answer\nred,green\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = [argument.replace("FILE", "rows.csv") for argument in arguments]
    code, out, err = program("predict", adapter, *given, "-q")
    assert (code, out) == (2, "")
    assert said in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_output_is_replaced_only_if_that_is_asked_for(program, adapter, tmp_path):
    out = tmp_path / "answers.jsonl"
    for more in ([], ["--overwrite"]):
        assert program("predict", adapter, "--text", "red", "--out", out, *more, "-q")[0] == 0
    assert json.loads(out.read_text())["text"] == "red"


def test_recorded_tasks_are_completed(adapter, monkeypatch):
    monkeypatch.setenv("COMP_WORDS", f"tangora predict {adapter} --text 'a' --task c")
    assert completion.recorded_tasks("c") == ["colors"]
    assert completion.recorded_tasks("x") == []
    monkeypatch.setenv("COMP_WORDS", "tangora predict nowhere --task c")
    assert completion.recorded_tasks("c") == []
