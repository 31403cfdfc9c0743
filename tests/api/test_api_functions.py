"""The functions of ``import tangora`` that take folders, keywords and new rows."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
import torch

import tangora
from tangora.api import shown as showing
from tangora.config.tasks import BaseConfig
from tangora.errors import ArgumentError, DataError, ModelError, RecipeError
from tangora.progress import Progress


@pytest.fixture(scope="module")
def base(workshop):
    return tangora.load_base(str(workshop / "encoder"), family="text-zero-shot", max_length=16)


@pytest.fixture(scope="module")
def task(workshop, base):
    files = {split: workshop / "colors" / f"{split}.parquet" for split in ("train", "test")}
    return tangora.load_task("one", base, files, labels=["red", "green", "blue"], limit={"test": 12})


class Counting(Progress):
    def __init__(self):
        self.labels, self.steps = [], 0

    def begin(self, label, total):
        self.labels.append((label, total))

    def advance(self, steps=1, detail=""):
        self.steps += steps


def test_a_base_by_keywords_is_that_of_the_settings(workshop, base):
    config = BaseConfig(family="text-zero-shot", model=str(workshop / "encoder"), max_length=16)
    assert tangora.load_base(config).fingerprint == base.fingerprint
    assert base.config == config


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({}, ArgumentError, "a base needs a family"),
        ({"family": "text"}, RecipeError, "text-zero-shot"),
        ({"family": "text-zero-shot", "max_len": 3}, RecipeError, "max_length"),
    ],
)
def test_bad_bases(workshop, arguments, kind, words):
    with pytest.raises(kind, match=words):
        tangora.load_base(workshop / "encoder", **arguments)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_files_are_of_the_kind_their_names_say(workshop, base, task, suffix):
    files = {split: workshop / "colors" / f"{split}.{suffix}" for split in ("train", "test")}
    other = tangora.load_task("one", base, files, labels=task.labels, limit={"test": 12})
    assert other.splits["test"].fingerprint == task.splits["test"].fingerprint
    recipe = {suffix: {split: str(path) for split, path in files.items()}}
    again = tangora.load_task("one", base, recipe, labels=task.labels, limit={"test": 12})
    assert again.fingerprint == other.fingerprint


def test_bad_tasks(base):
    with pytest.raises(ArgumentError, match="a task needs a source"):
        tangora.load_task("one", base)
    with pytest.raises(ArgumentError, match="kind of the files is not clear"):
        tangora.load_task("one", base, {"train": "a.csv", "test": "a.parquet"})
    with pytest.raises(ArgumentError, match="kind of the files is not clear"):
        tangora.load_task("one", base, {"train": "a.xls", "test": "a.xls"})
    with pytest.raises(RecipeError, match="labels"):
        tangora.load_task("one", base, {"train": "a.csv", "test": "b.csv"}, lables=["a"])


def test_evaluate_takes_a_folder_or_nothing(workshop, base, task):
    folder = workshop / "adapters" / "one"
    scores = tangora.evaluate(folder, base, [task], split="test")
    assert scores == tangora.evaluate(tangora.load(folder), base, task)
    assert scores.mean == scores["one"].score
    assert tangora.evaluate(None, base, task)["one"].loss != scores["one"].loss


def test_several_adapters_are_not_one(workshop, base, task):
    with pytest.raises(ArgumentError, match=r"neither an adapter nor its folder, got 'list'.*for several, call it"):
        tangora.evaluate([workshop / "adapters" / "one"], base, task)


def test_predictions_are_those_that_are_scored(workshop, base, task):
    for folder in (None, workshop / "adapters" / "one", workshop / "run" / "adapters" / "tangent" / "one"):
        before = {name: value.clone() for name, value in base.backbone.state_dict().items()}
        answers = tangora.predict(folder, base, task, "test", batch_size=5)
        scored = tangora.evaluate(folder, base, task)["one"]
        assert answers.answers == [task.labels[value] for value in scored.values]
        assert answers.probabilities.shape == (12, 3)
        torch.testing.assert_close(answers.probabilities.sum(1), torch.ones(12))
        right = answers.probabilities[torch.arange(12), torch.tensor(task.splits["test"].targets)]
        assert -right.log().mean().item() == pytest.approx(scored.loss, rel=1e-4)
        assert all(torch.equal(value, before[name]) for name, value in base.backbone.state_dict().items())


def test_new_rows_are_answered_like_those_of_a_file(workshop, base, task):
    import pandas

    rows = pandas.read_json(workshop / "colors" / "test.jsonl", lines=True)
    whole = tangora.load_task(
        "one", base, {split: workshop / "colors" / f"{split}.jsonl" for split in ("train", "test")}, labels=task.labels
    )
    adapter = workshop / "adapters" / "one"
    known = tangora.predict(adapter, base, whole, "test")
    for given in (rows["text"].tolist(), rows.to_dict("records"), np.array(rows["text"])):
        new = tangora.predict(adapter, base, task, given)
        assert new.answers == known.answers
        torch.testing.assert_close(new.probabilities, known.probabilities)


def test_text_to_text_answers_in_words(answer_base, answer_task):
    answers = tangora.predict(None, answer_base, answer_task, ["red", "blue"])
    assert answers.probabilities is None
    assert all(isinstance(answer, str) for answer in answers)
    assert answers[:1] == [answers[0]]
    scored = tangora.evaluate(None, answer_base, answer_task)["answers"]
    assert tangora.predict(None, answer_base, answer_task).answers == scored.values


def test_images_are_answered(image_base, image_task, image_data):
    from PIL import Image

    images = [Image.open(path) for path in sorted((image_data / "test" / "red").iterdir())]
    answers = tangora.predict(None, image_base, image_task, images)
    assert set(answers) <= {"red", "green", "blue"}
    assert answers.probabilities.shape == (len(images), 3)


def test_what_cannot_be_predicted(workshop, base, task):
    with pytest.raises(DataError, match=r"the split is missing, got 'tset'.*Did you mean 'test'"):
        tangora.predict(None, base, task, "tset")
    with pytest.raises(ArgumentError, match="no rows"):
        tangora.predict(None, base, task, [])
    with pytest.raises(DataError, match="unknown column"):
        tangora.predict(None, base, task, [{"txt": "red"}])
    with pytest.raises(ArgumentError, match="batch_size"):
        tangora.predict(None, base, task, batch_size=0)
    other = tangora.load(workshop / "adapters" / "one")
    about = other.metadata.base.model_copy(update={"fingerprint": "0" * 64})
    other = type(other)(other.updates, other.metadata.model_copy(update={"base": about}))
    with pytest.raises(ModelError, match="other base weights"):
        tangora.predict(other, base, task)


def test_analyze_is_the_command(workshop, tmp_path):
    import json
    import shutil

    # without what examples of the documentation may have analyzed in the shared run before
    shutil.copytree(workshop / "run", tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    page = tangora.analyze(tmp_path / "run", only=["signs"], modes=["lora"], progress=False)
    assert page == tmp_path / "run" / "report.html"
    entries = json.loads((tmp_path / "run" / "analysis" / "signs.json").read_text())["entries"]
    assert [entry["mode"] for entry in entries] == ["lora"]


def test_progress_goes_where_one_says(base, task, monkeypatch):
    seen = Counting()
    tangora.evaluate(None, base, task, progress=seen)
    assert seen.labels == [("score on test", 1)]
    tangora.predict(None, base, task, progress=seen)
    assert seen.steps == 1 + 12
    config = tangora.FinetuneConfig(training={"steps": 2, "batch_size": 4})
    steps = []
    tangora.finetune(base, task, config, progress=seen, on_step=lambda *step: steps.append(step[:2]))
    assert seen.labels[-1] == ("lora · one", 2)
    assert steps == [(1, 2), (2, 2)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "expected"),
    [
        (io.StringIO(), None, False),
        (io.StringIO(), True, True),
        (Terminal(), None, True),
        (Terminal(), False, False),
    ],
)
def test_progress_is_shown_to_somebody(monkeypatch, stream, progress, expected):
    monkeypatch.setattr(sys, "stderr", stream)
    with showing.shown(progress) as bars:
        bars.begin("work", 1)
        bars.advance()
        bars.end()
    assert bool(re.search("work", stream.getvalue())) == expected
