"""`tangora.predictor`: an artefact's folder is all that its scored answers need."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import tangora
from families import MODES, answers_of
from tangora.errors import AdapterError, ArgumentError, DataError, FileError, ModelError
from tangora.evaluation import predictor as module
from tangora.tasks.sources import Table

CASES = [("text", mode) for mode in MODES]
CASES += [(kind, mode) for kind in ("image", "answer", "head", "language", "tags") for mode in ("lora", "tangent")]
CASES += [(kind, "lora") for kind in ("pairs", "multi", "regression", "picture")] + [("head", "full")]


def scored(folder, case):
    """The predictions of the test split by `tangora.evaluate`, as answers, and their mean loss."""
    result = tangora.evaluate(folder, case.base, case.task)[case.task.name]
    return answers_of(result.values, case.task), result.loss


@pytest.fixture(scope="module")
def adapters(families, tmp_path_factory):
    """(kind, mode) -> folder of an adapter."""
    made = {}

    def of(kind, mode):
        if (kind, mode) not in made:
            made[kind, mode] = families[kind].trained(mode, tmp_path_factory.mktemp("adapters") / mode)
        return made[kind, mode]

    return of


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_its_answers_are_those_that_are_scored(kind, mode, families, adapters):
    case, folder = families[kind], adapters(kind, mode)
    expected, loss = scored(folder, case)
    predict = tangora.predictor(folder, device="cpu")
    answers = predict(case.rows, batch_size=7)
    assert (predict.task, predict.labels) == (case.task.name, case.task.labels)
    if case.task.form.kind == "number":
        assert answers.answers == pytest.approx(expected, rel=1e-5)
    else:
        assert answers.answers == expected
    assert (answers.probabilities is not None) == (case.task.form.kind in ("classes", "labels"))
    if case.task.form.kind != "classes":
        assert answers.probability is None
        return
    targets = torch.tensor(case.task.splits["test"].targets)
    right = answers.probabilities[torch.arange(len(targets)), targets]
    # a mean of -log p of 24 rows in float32, each p off by at most some 1e-6
    assert -right.log().mean().item() == pytest.approx(loss, rel=1e-4)
    assert answers.probability.tolist() == answers.probabilities.max(1).values.tolist()
    assert torch.equal(predict(case.rows, batch_size=7).probabilities, answers.probabilities), "it is called again"


@pytest.mark.parametrize("mode", ["lora", "l-lora-moved", "tangent-moved", "full"])
def test_a_base_that_is_given_stays_the_callers(mode, families, adapters):
    case, folder = families["text"], adapters("text", mode)
    own = tangora.predictor(folder, device="cpu")(case.rows)
    before = {name: value.clone() for name, value in case.base.backbone.state_dict().items()}
    predict, other = (tangora.predictor(f, base=case.base) for f in (folder, adapters("text", "full-tangent")))
    for _ in range(2):
        torch.testing.assert_close(predict(case.rows).probabilities, own.probabilities, rtol=0, atol=1e-6)
        assert all(torch.equal(value, before[name]) for name, value in case.base.backbone.state_dict().items())
        assert not torch.equal(other(case.rows).probabilities, own.probabilities)


def test_rows_in_every_form(families, adapters, image_data):
    case, folder = families["text"], adapters("text", "lora")
    predict = tangora.predictor(folder, base=case.base)
    expected = predict(case.rows).answers
    mappings = [{"id": i, "text": text} for i, text in enumerate(case.rows)]
    for rows in (np.array(case.rows), tuple(case.rows), mappings):
        assert predict(rows).answers == expected
    case = families["image"]
    predict = tangora.predictor(adapters("image", "lora"), base=case.base)
    files = sorted((image_data / "test" / "blue").iterdir())
    expected = predict([str(file) for file in files])
    from PIL import Image

    assert torch.equal(predict([Image.open(file) for file in files]).probabilities, expected.probabilities)
    assert torch.equal(predict([{"images": str(file)} for file in files]).probabilities, expected.probabilities)


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([], ArgumentError, "no rows"),
        ("a red photo", ArgumentError, "rows are a list, got 'str'"),
        ({"text": "red"}, ArgumentError, "rows are a list, got 'dict'"),
        (["red", {"text": "red"}], DataError, "some rows are mappings"),
        ([{"txt": "red"}], DataError, "unknown column for text, got 'text'"),
        (["red", None, "blue"], DataError, "rows, column text, row 1"),
    ],
)
def test_rows_that_are_none(rows, kind, words, families, adapters):
    predict = tangora.predictor(adapters("text", "lora"), base=families["text"].base)
    with pytest.raises(kind, match=words):
        predict(rows)
    with pytest.raises(ArgumentError, match="batch_size"):
        predict(["red"], batch_size=0)


def test_bare_values_are_refused_where_a_row_has_several_columns(families, tmp_path):
    case = families["answer"]
    record = case.task.record
    record = {**record, "task": {**record["task"], "prompt": "is {a} {b}"}}
    task = replace(case.task, record=record)
    folder = tmp_path / "pairs"
    tangora.finetune(case.base, task, case.config("lora", steps=1), out=folder)
    predict = tangora.predictor(folder, base=case.base)
    with pytest.raises(DataError, match=r"several columns.*mapping of a, b"):
        predict(["red"])
    assert predict([{"a": "red", "b": "good"}]).answers == predict([{"b": "good", "a": "red", "c": 1}]).answers


def test_rows_are_encoded_a_block_at_a_time(families, adapters, monkeypatch):
    case = families["text"]
    predict = tangora.predictor(adapters("text", "lora"), base=case.base)
    expected = predict(case.rows)
    sizes = []

    def seen(table, task, base):
        sizes.append(len(table))
        return inputs(table, task, base)

    inputs = module.inputs_of
    monkeypatch.setattr(module, "inputs_of", seen)
    monkeypatch.setattr(module, "_BLOCK", 10)
    answers = predict(case.rows)
    assert sizes == [10, 10, 4]
    torch.testing.assert_close(answers.probabilities, expected.probabilities, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="row 17"):
        predict([*case.rows[:17], 3.5, *case.rows])
    table = Table({"text": [*case.rows[:17], 3.5]}, "file.csv", {})
    with pytest.raises(DataError, match=r"file\.csv, column text, row 17"):
        list(predict.blocks(table))


def test_a_fused_adapter_answers_all_its_tasks(families, adapters, tmp_path):
    text = families["text"]
    other = replace(text.task, name="other", record={**text.task.record, "labels": ["grass", "sky", "sea"]})
    tangora.finetune(text.base, other, text.config("lora"), out=tmp_path / "other")
    tangora.fuse([adapters("text", "lora"), tmp_path / "other"], weights=0.5).save(tmp_path / "fused")
    with pytest.raises(ArgumentError, match=r"2 tasks are recorded.*--task: colors, other"):
        tangora.predictor(tmp_path / "fused", base=text.base)
    with pytest.raises(ArgumentError, match=r"no such task is recorded, got 'color'.*Did you mean 'colors'"):
        tangora.predictor(tmp_path / "fused", "color", base=text.base)
    predict = tangora.predictor(tmp_path / "fused", "other", base=text.base)
    assert set(predict(text.rows)) <= {"grass", "sky", "sea"}
    assert (
        tangora.predictor(tmp_path / "fused", "colors", base=text.base)(text.rows).answers
        == scored(tmp_path / "fused", text)[0]
    )


def test_what_does_not_belong_together(families, adapters, tmp_path):
    text, head, folder = families["text"], families["head"], adapters("text", "lora")
    with pytest.raises(FileError, match="no such folder"):
        tangora.predictor(tmp_path / "nowhere")
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("heads"))
    with pytest.raises(ArgumentError, match="no task is recorded"):
        tangora.predictor(tmp_path / "bare", base=text.base)
    with pytest.raises(ArgumentError, match="the base is of another family, got 'linear-head'"):
        tangora.predictor(folder, base=head.base)
    shorter = tangora.load_base(text.base.config.model, family="text-zero-shot", max_length=5)
    with pytest.raises(ArgumentError, match=r"another max_length than in training, got 5 .*max_length=64"):
        tangora.predictor(folder, base=shorter)
    moved = tangora.load_base(text.base.config.model, family="text-zero-shot")
    moved.fingerprint = "0" * 64
    with pytest.raises(ModelError, match="other base weights"):
        tangora.predictor(folder, base=moved)
    assert len(tangora.predictor(folder, base=moved, same_base=True)(["red"])) == 1
    with pytest.raises(ModelError, match=r"the base cannot be loaded.*base=, or --base"):
        tangora.predictor(folder, base=str(tmp_path / "gone"))
    with pytest.raises(ArgumentError, match="no dtype of forward passes, got 'float8'"):
        tangora.predictor(folder, dtype="float8")


def test_a_merged_checkpoint(families, adapters, tmp_path):
    """It answers as its adapter; class names that the backbone embeds are embedded by the unchanged base."""
    text, head = families["text"], families["head"]
    for case, kind in ((text, "text"), (head, "head")):
        merged = tmp_path / kind
        tangora.fuse_checkpoints(case.base.config.model, [adapters(kind, "lora")], merged, weights=1.0)
        base = case.base.config.model if kind == "text" else None
        answers = tangora.predictor(merged, base=base, device="cpu")(case.rows)
        expected = tangora.predictor(adapters(kind, "lora"), base=case.base)(case.rows)
        torch.testing.assert_close(answers.probabilities, expected.probabilities, rtol=0, atol=1e-5)
    given = tangora.predictor(tmp_path / "text", base=text.base)(text.rows)
    own = tangora.predictor(tmp_path / "text", base=tmp_path / "text", same_base=True, device="cpu")(text.rows)
    assert not torch.allclose(own.probabilities, given.probabilities, atol=1e-3), "the names are elsewhere"
    with pytest.raises(
        ArgumentError, match=r"class names of colors are embedded by the unchanged base.*base=, or --base"
    ):
        tangora.predictor(tmp_path / "text")
    with pytest.raises(ModelError, match="merged into another base"):
        tangora.predictor(tmp_path / "text", base=tmp_path / "text")
    with pytest.raises(ArgumentError, match="a checkpoint is its own base"):
        tangora.predictor(tmp_path / "head", base=head.base)
    with pytest.raises(ArgumentError, match="no task is recorded"):
        tangora.predictor(text.base.config.model)


def test_the_head_is_that_of_the_folder(families, adapters, tmp_path):
    from safetensors.torch import load_file, save_file

    case, folder = families["head"], tmp_path / "copy"
    shutil.copytree(adapters("head", "lora"), folder)
    own = tangora.predictor(folder, base=case.base)(case.rows)
    path = folder / "heads" / "grades.safetensors"
    head = load_file(path)
    save_file({name: torch.flip(value, [0]) for name, value in head.items()}, path)
    turned = tangora.predictor(folder, base=case.base)(case.rows)
    torch.testing.assert_close(turned.probabilities, own.probabilities.flip(1), rtol=0, atol=1e-6)
    assert not torch.allclose(turned.probabilities, own.probabilities, atol=1e-2)
    record = folder / "heads" / "grades.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"labels": ["low", "high"]}))
    with pytest.raises(AdapterError, match="does not fit"):
        tangora.predictor(folder, base=case.base)(case.rows)


def test_a_long_form_of_numbers(families, adapters):
    """In half precision forward passes are rounded; the probabilities still sum to one."""
    case = families["text"]
    predict = tangora.predictor(adapters("text", "lora"), device="cpu", dtype="bfloat16")
    answers = predict(case.rows)
    assert answers.probabilities.dtype == torch.float32
    torch.testing.assert_close(answers.probabilities.sum(1), torch.ones(len(case.rows)))
    exact = tangora.predictor(adapters("text", "lora"), base=case.base)(case.rows)
    assert not torch.equal(answers.probabilities, exact.probabilities)
