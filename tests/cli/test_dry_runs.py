"""What `--dry-run` of `finetune` and `run` shows of the rows, on a narrow terminal and as JSON; nothing is written."""

from __future__ import annotations

import json

import pytest

from tangora.cli.rows import overview_lines
from tangora.support.shown import percent
from tangora.tasks.overview import Example, Overview, SplitOverview, Spread
from workshop import done as command

SPREAD = Spread(4, 9, 16)


@pytest.fixture
def _there(workshop, monkeypatch):
    monkeypatch.chdir(workshop)


def of(counts=None, rows=100, converted=100, cut=0, numbers=None, answers="classes", prompt="a", answer="b", names=()):
    split = SplitOverview(rows, counts, numbers, converted, cut, 16, SPREAD, None)
    splits = {"train": split, "test": split}
    return Overview("t", "f", ("accuracy",), answers, list(counts or ()), list(names), splits, Example(prompt, answer))


def test_few_classes_are_listed_and_many_are_summed_up():
    lines = list(overview_lines(of({"yes": 60, "no": 40}), 60))
    assert lines[0] == "t: 2 classes by accuracy; tokens 4 to 16 (median 9)"
    assert lines[2:4] == ["  train: yes (60), no (40)", "  test: yes (60), no (40)"]
    many = list(overview_lines(of({f"c{i}": 10 + i for i in range(77)}), 60))
    assert many[2] == "  train: 10 to 86 rows each; c76 (86), c75 (85), ..., c1 (11), c0 (10)"
    assert sum("rows each" in line for line in many) == 1, "of train alone"
    tags = list(overview_lines(of({f"t{i}": 3 for i in range(9)}, answers="tags"), 60))
    assert (tags[0].split(";")[0], tags[2]) == ("t: 9 tags by accuracy", "  train: 3 words each")


def test_what_is_cut_and_what_is_a_sample():
    lines = list(overview_lines(of({"yes": 1}, rows=60614, converted=2000, cut=8), 60))
    assert lines[1] == "  cut at max_length 16: 0.4 % of train, 0.4 % of test"
    assert lines[2] == "  tokens and cuts are those of a sample: 2,000 of 60,614 train, 2,000 of 60,614 test rows"
    whole = list(overview_lines(of({"yes": 1}), 60))
    assert whole[1] == "  cut at max_length 16: none of 200 rows"
    assert not any("sample" in line for line in whole)


def test_numbers_and_texts():
    lines = list(overview_lines(of(numbers=Spread(0.5, 2, 5), answers="number"), 60))
    assert lines[0] == "t: numbers by accuracy; tokens 4 to 16 (median 9)"
    assert lines[2] == "  train: numbers 0.5 to 5 (median 2)"
    assert "  train: bytes 7" in list(
        overview_lines(of(numbers=Spread(7, 7, 7), answers="likelihood", answer=None), 60)
    )


@pytest.mark.parametrize("width", [60, 80])
def test_examples_fit_the_width_and_are_whole(width):
    prompt = "<system>\nYou add.<end>\n" + "<user> " + "1 + " * 100 + "<end>\n<assistant> "
    lines = list(overview_lines(of(prompt=prompt, answer="x" * 200, names=["a photo of " + "y" * 100]), width))
    assert all(len(line) <= width for line in lines)
    first = next(number for number, line in enumerate(lines) if line.startswith("  reads:   "))
    last = next(number for number, line in enumerate(lines) if line.startswith("  answers: "))
    indent = len("  reads:   ")
    assert "".join(line[indent:] for line in lines[first:last]) == prompt.replace("\n", r"\n")
    assert "".join(line[indent:] for line in lines[last:]) == "x" * 200


def test_lines_end_between_words_and_never_inside_a_special_token():
    prompt = "[CLS] " + "<|im_start|>user\nan answer, <b>!<|im_end|>\n" * 12 + "x" * 90 + " [SEP]"
    for width in range(40, 90):
        lines = [line[11:] for line in overview_lines(of(prompt=prompt), width)]
        read = lines[lines.index(next(line for line in lines if line.startswith("[CLS]"))) : -1]
        assert "".join(read) == prompt.replace("\n", r"\n")
        for token in ("<|im_start|>", "<|im_end|>", r"\n", "answer,", "[SEP]"):
            assert sum(line.count(token) for line in read) == prompt.replace("\n", r"\n").count(token), (width, token)


def test_very_long_examples_keep_both_ends():
    lines = list(overview_lines(of(prompt="<user>" + "1 + " * 1000 + "<end>"), 60))
    read = "".join(line[11:] for line in lines if line.startswith(("  reads:   ", " " * 11)))
    assert len(read) == 800
    assert read.startswith("<user>1 + 1")
    assert read.endswith("1 + <end>")
    assert read.count(" … ") == 1


@pytest.mark.usefixtures("_there")
def test_a_dry_run_of_a_training(tmp_path):
    out = tmp_path / "out"
    arguments = ("finetune", "recipe.yaml", "--task", "one", "--out", out, "--dry-run", "--mode", "tangent")
    document = json.loads(command(*arguments, "--json", "--set", "base.max_length=3").stdout)
    assert (document["dry_run"], document["mode"], document["steps"]) == (True, "tangent", 2)
    assert document["seconds"] == 2 * document["seconds_per_step"] > 0
    train = document["rows"]["one"]["splits"]["train"]
    assert (train["rows"], train["cut"], train["cut_share"], train["max_length"]) == (43, 43, 1.0, 3)
    assert sum(train["counts"].values()) == 43
    assert document["rows"]["one"]["example"]["prompt"].startswith("[CLS] ")
    shown = command(*arguments).stdout
    assert "  train: red (" in shown
    assert f"{document['sites']} sites, {document['trainable']:,} numbers" in shown
    assert "time of 2 steps, by a few of them: " in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_there")
def test_a_training_that_may_not_fit_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("tangora.modes.timing._available", lambda: 1000)
    arguments = ("finetune", "recipe.yaml", "--task", "one", "--out", tmp_path / "out", "--dry-run")
    assert "not measured, since a training may take more memory than is free" in command(*arguments).stdout
    document = json.loads(command(*arguments, "--json").stdout)
    assert (document["seconds"], document["seconds_per_step"]) == (None, None)


@pytest.mark.usefixtures("_there")
def test_a_dry_run_of_a_run_has_the_rows_of_every_task(tmp_path):
    arguments = ("run", "recipe.yaml", "--out", tmp_path / "run", "--dry-run")
    document = json.loads(command(*arguments, "--json").stdout)
    assert list(document["rows"]) == ["one", "two"]
    test = document["rows"]["two"]["splits"]["test"]
    assert (test["rows"], test["converted"], test["cut"]) == (12, 12, 0)
    shown = command(*arguments).stdout
    assert "two: 3 classes by accuracy; tokens " in shown
    steps = {mode["mode"]: mode["seconds_per_step"] for mode in document["modes"]}
    assert sorted(steps) == ["lora", "tangent"]
    assert min(steps.values()) > 0
    assert "training of tangent: 2 adapters of 2 steps take about " in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_there")
def test_a_new_run_converts_a_sample_and_counts_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("tangora.runs.context.SAMPLE", 7)
    document = json.loads(command("run", "recipe.yaml", "--out", tmp_path / "run", "--dry-run", "--json").stdout)
    train = document["rows"]["one"]["splits"]["train"]
    assert (train["rows"], train["converted"], sum(train["counts"].values())) == (43, 7, 43)
    kept = json.loads(command("run", "recipe.yaml", "--out", "run", "--dry-run", "--json").stdout)
    assert {mode["seconds_per_step"] for mode in kept["modes"]} == {None}, "nothing is left to train"
    assert kept["rows"]["one"]["splits"]["train"]["converted"] == 43, "keys of results are compared"


def test_shares_in_percent():
    assert percent(1, 100_000) == "< 0.1 %"
    assert percent(99_999, 100_000) == "> 99.9 %"
    assert percent(0, 0) == "0 %"
