"""`tangora.load_model(folder, task=...)`: the logits that are scored, with the head built in."""

from __future__ import annotations

import copy

import pytest
import torch

import tangora
from families import MODES
from tangora.errors import ArgumentError, DataError
from tangora.evaluation.evaluator import answering
from tangora.modes.task_models import TaskNetwork
from tangora.tasks import TaskModel

CASES = [(kind, mode) for kind in ("text", "head") for mode in MODES]
CASES += [(kind, mode) for kind in ("image", "answer") for mode in ("lora", "tangent")]


def expected(folder, case, labels, inputs):
    """The logits of the model by which `tangora.evaluate` scores, and those of the base."""
    with torch.no_grad():
        bare = TaskModel(case.base.backbone, case.task, case.base).eval().logits(inputs, labels)
        with answering(tangora.load(folder), case.base) as model_of:
            return model_of(case.task).eval().logits(inputs, labels), bare


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_its_logits_are_those_that_are_scored(kind, mode, families, tmp_path):
    case = families[kind]
    folder = case.trained(mode, tmp_path / "a")
    model = tangora.load_model(folder, task=case.task.name)
    assert isinstance(model, TaskNetwork)
    assert (model.task, model.labels, model.training) == (case.task.name, case.task.labels, False)
    batch = case.task.splits["test"].batches(24, model.model.collator)[0][1]
    labels = batch["labels"] if kind == "answer" else None
    rows = sorted(range(24), key=lambda row: case.task.splits["test"]._length(row))
    inputs = model.encode([case.rows[row] for row in rows])
    assert inputs.keys() == batch.keys() - {"labels"}
    assert all(torch.equal(value, batch[name]) for name, value in inputs.items())
    scored, bare = expected(folder, case, batch["labels"], inputs)
    # float32 logits of equal weights; only the order of sums may differ
    close = {"rtol": 0, "atol": 1e-5 * float(scored.abs().max())}
    with torch.no_grad():
        logits = model(labels=labels, **inputs)
        torch.testing.assert_close(logits, scored, **close)
        assert (scored - bare).abs().max() > 100 * close["atol"], "the base alone has other logits"
        torch.testing.assert_close(copy.deepcopy(model)(labels=labels, **inputs), scored, **close)


def test_a_copy_outlives_its_original(families, tmp_path):
    case = families["text"]
    model = tangora.load_model(case.trained("tangent-moved", tmp_path / "a"), task="colors")
    inputs = model.encode(case.rows)
    with torch.no_grad():
        logits = model(**inputs)
        other = copy.deepcopy(model)
        del model
        torch.testing.assert_close(other(**inputs), logits, rtol=0, atol=1e-5 * float(logits.abs().max()))


@pytest.mark.parametrize("mode", ["lora", "tangent", "full-tangent"])
def test_it_moves_as_a_whole(mode, families, tmp_path):
    """An expansion's direction goes to another device with the weights."""
    case = families["image"]
    model = tangora.load_model(case.trained(mode, tmp_path / "a"), task="patches").to("meta")
    inputs = model.encode(case.rows)
    assert {value.device.type for value in inputs.values()} == {"meta"}
    with torch.no_grad():
        logits = model(**inputs)
    assert (logits.shape, logits.device.type) == ((24, 3), "meta")
    bare = tangora.load_model(tmp_path / "a").to("meta")
    assert bare(**inputs).image_embeds.device.type == "meta"


def test_what_it_cannot_do_is_refused(families, tmp_path):
    text, answer = families["text"], families["answer"]
    folder = text.trained("lora", tmp_path / "text")
    with pytest.raises(ArgumentError, match=r"a base with its preprocessing, got 'BertModel'"):
        tangora.load_model(folder, text.base.backbone, task="colors")
    with pytest.raises(ArgumentError, match="no such task is recorded"):
        tangora.load_model(folder, task="color")
    with pytest.raises(DataError, match="row 1"):
        tangora.load_model(folder, task="colors").encode(["red", 7])
    model = tangora.load_model(answer.trained("lora", tmp_path / "answer"), task="answers")
    with pytest.raises(ArgumentError, match=r"logits of this task are of target tokens.*labels="):
        model(**model.encode(["red"]))


def test_a_loaded_base_serves_both_forms(families, tmp_path):
    case = families["text"]
    folder = case.trained("full", tmp_path / "a")
    name = case.base.config.model
    features = tangora.load_model(folder, tangora.load_base(name, family="text-zero-shot"))
    model = tangora.load_model(folder, tangora.load_base(name, family="text-zero-shot"), task="colors")
    assert all(
        torch.equal(value, model.model.backbone.state_dict()[name]) for name, value in features.state_dict().items()
    )
