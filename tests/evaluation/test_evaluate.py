"""Scores measured in place, kept, and never measured twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
from tangora.adapters.application import applied
from tangora.errors import DataError, ModelError, OutputError
from tangora.evaluation.evaluator import Evaluator, Result, ScoreStore, evaluate
from tangora.updates.task_vector import LowRank

SITE = "encoder.layer.0.attention.self.query"


@pytest.fixture
def adapter(text_base):
    generator = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(32, 2, generator=generator), torch.randn(2, 32, generator=generator), 2.0)
    about = BaseInfo(model=text_base.config.model, fingerprint=text_base.fingerprint, family="text-zero-shot")
    return Adapter({SITE: update}, Metadata(kind="lora", base=about))


def weights(base):
    return {name: value.clone() for name, value in base.backbone.state_dict().items()}


def test_an_adapter_is_in_the_weights_for_the_block_alone(text_base, adapter):
    before = weights(text_base)
    with applied(text_base.backbone, adapter):
        changed = {
            name for name, value in text_base.backbone.state_dict().items() if not torch.equal(value, before[name])
        }
        assert changed == {f"{SITE}.weight"}
        expected = before[f"{SITE}.weight"] + adapter.updates[SITE].dense()
        assert torch.allclose(text_base.backbone.get_parameter(f"{SITE}.weight"), expected)
    assert all(torch.equal(value, before[name]) for name, value in text_base.backbone.state_dict().items())


def test_weights_are_as_before_also_when_scoring_fails(text_base, adapter):
    before = weights(text_base)
    with pytest.raises(ZeroDivisionError), applied(text_base.backbone, adapter):
        raise ZeroDivisionError
    strange = dataclasses.replace(adapter, updates={**adapter.updates, "no.such.site": adapter.updates[SITE]})
    with pytest.raises(ModelError, match=r"no\.such\.site"), applied(text_base.backbone, strange):
        pytest.fail("it was applied")
    assert all(torch.equal(value, before[name]) for name, value in text_base.backbone.state_dict().items())


def test_what_is_known_is_not_made_again(text_base, text_task, adapter):
    evaluator = Evaluator(text_base, [text_task])
    one = evaluator.evaluate("key", lambda: adapter, ["colors"], "test")
    assert evaluator.scored == 1
    assert evaluator.evaluate("key", lambda: pytest.fail("it was made again"), ["colors"], "test") == one
    assert evaluate(adapter, text_base, [text_task]) == one
    assert evaluate(None, text_base, [text_task])["colors"].loss != one["colors"].loss


def test_an_adapter_of_other_weights_is_refused(text_base, text_task, adapter):
    about = adapter.metadata.base.model_copy(update={"fingerprint": "0" * 64, "model": "org/other"})
    other = dataclasses.replace(adapter, metadata=adapter.metadata.model_copy(update={"base": about}))
    with pytest.raises(ModelError, match=r"made for other base weights: .*got .*Set base\.model to org/other"):
        evaluate(other, text_base, [text_task])
    unknown = about.model_copy(update={"fingerprint": None})
    stock = dataclasses.replace(adapter, metadata=adapter.metadata.model_copy(update={"base": unknown}))
    with pytest.raises(ModelError, match=r"made for org/other, got .* at base\.model\. Set base\.model .* --same-base"):
        evaluate(stock, text_base, [text_task])
    known = evaluate(adapter, text_base, [text_task])
    assert Evaluator(text_base, [text_task], same_base=True).evaluate("k", lambda: stock, ["colors"], "test") == known
    for name in (None, f"elsewhere/{Path(text_base.config.model).name}"):
        moved = adapter.metadata.model_copy(update={"base": unknown.model_copy(update={"model": name})})
        assert evaluate(dataclasses.replace(adapter, metadata=moved), text_base, [text_task]) == known


def test_a_split_that_is_not_there(text_base, text_task):
    with pytest.raises(DataError, match="the split is missing, got 'dev' at task colors"):
        evaluate(None, text_base, [text_task], split="dev")


def test_scores_outlive_the_process_and_a_torn_line_does_not(tmp_path):
    path = tmp_path / "cache" / "scores.jsonl"
    store = ScoreStore(path)
    store.put("a", Result(0.5, 1.0, [0, 1]))
    store.put("b", Result(0.25, 2.0, ["yes"]))
    with path.open("a") as file:
        file.write('{"key": "c", "sco')
    again = ScoreStore(path)
    assert len(again) == 2
    assert again.get("b") == Result(0.25, 2.0, ["yes"])
    again.put("c", Result(1.0, 0.0, []))
    assert len(ScoreStore(path)) == 3


def test_a_full_disk_is_said(tmp_path):
    store = ScoreStore(tmp_path / "scores.jsonl")
    (tmp_path / "scores.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"the disk is full at .*scores\.jsonl"):
        store.put("a", Result(0.5, 1.0, [0]))
