"""peft's task type of trained adapters: with it, stock peft computes the logits that were trained."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers

import tangora
from tangora.fusion.fusion import fuse

KINDS = {
    "language": ("CAUSAL_LM", "AutoModelForCausalLM", "AutoPeftModelForCausalLM"),
    "answer": ("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", "AutoPeftModelForSeq2SeqLM"),
}
ROUNDING = 1e-4  # float32, two layers of width 32: W + s·BA at once, or W and s·BA one after the other


@pytest.fixture(scope="module")
def trained(families, tmp_path_factory):
    made = {}

    def folder_of(kind, mode):
        if (kind, mode) not in made:
            made[kind, mode] = families[kind].trained(mode, tmp_path_factory.mktemp(kind) / mode)
        return made[kind, mode]

    return folder_of


def task_type(folder):
    return json.loads((folder / "adapter_config.json").read_text())["task_type"]


def logits(model, kind):
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    if kind == "answer":
        inputs["decoder_input_ids"] = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("mode", ["lora", "l-lora-moved"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_peft_loads_the_trained_logits(families, trained, kind, mode):
    named, auto, auto_peft = KINDS[kind]
    folder, model = trained(kind, mode), families[kind].base.config.model
    assert task_type(folder) == named
    base = getattr(transformers, auto).from_pretrained(model)
    before = logits(base, kind)
    ours = logits(tangora.load_model(folder), kind)
    theirs = peft.PeftModel.from_pretrained(base, folder)
    assert type(theirs) is peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[named]
    for loaded in (theirs, getattr(peft, auto_peft).from_pretrained(folder)):
        torch.testing.assert_close(logits(loaded, kind), ours, rtol=ROUNDING, atol=ROUNDING)
    assert not torch.allclose(ours, before, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_expansion_has_none_since_peft_cannot_compute_it(trained, kind):
    assert task_type(trained(kind, "tangent")) is None


@pytest.mark.parametrize("kind", ["head", "multi", "tags", "text"])
def test_adapters_of_a_backbone_have_none(trained, kind):
    assert task_type(trained(kind, "lora")) is None


def test_a_fusion_keeps_what_its_experts_agree_on(trained, tmp_path):
    one = trained("language", "lora")
    fuse([one, one]).save(tmp_path / "same")
    assert task_type(tmp_path / "same") == "CAUSAL_LM"
    other = tangora.load(one)
    other = other.with_details(config={**other.config, "task_type": None})
    fuse([one, other]).save(tmp_path / "mixed")
    assert task_type(tmp_path / "mixed") is None


def test_tangent_adapters_and_others_are_not_fused(trained, tmp_path):
    pair = {mode: trained("language", mode) for mode in ("lora", "tangent", "l-lora")}
    what = "tangent was trained in the network's expansion .*, lora in the ordinary network.*one mode.*distill"
    for order in (("lora", "tangent"), ("tangent", "lora")):
        fusion = {name: tangora.load(pair[name]) for name in order}
        with pytest.raises(tangora.errors.FusionError, match=what):
            tangora.fusion.fusion.Fusion(list(fusion.values()), names=list(fusion))
    fuse([pair["lora"], pair["l-lora"]])
