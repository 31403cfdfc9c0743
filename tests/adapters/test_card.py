from __future__ import annotations

import ast
import re

import pytest
import torch
import yaml

from tangora.adapters.adapter import Adapter, BaseInfo, FusedInfo, InitialInfo, Metadata, Parent
from tangora.adapters.card import render
from tangora.updates.task_vector import Dense, LowRank

UPDATES = {"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2))}
BASE = BaseInfo(model="google/flan-t5-base", revision="abc", fingerprint="ef" * 32, family="text-to-text")
PARENTS = [Parent(name="a", task="sst2", fingerprint="0" * 64), Parent(name="b", task="trec6", fingerprint="1" * 64)]
RECIPE = {
    "lora": {"r": 8, "alpha": 16.0, "target_modules": ["q", "v"]},
    "training": {"learning_rate": 0.005, "steps": 200, "batch_size": 32, "schedule": "linear"},
}


def fused(**changes) -> FusedInfo:
    return FusedInfo(**({"method": "ties", "space": "delta", "parents": PARENTS, "weights": [0.3, -0.5]} | changes))


def front_matter(card: str) -> dict:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def code(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    ast.parse(found)
    return found


def test_a_trained_adapter():
    start = InitialInfo(seed=4, fingerprint="cd" * 32)
    about = Metadata(
        task="sst2", mode="l-lora", linearize="module", base=BASE, seed=7, initial=start, recipe=RECIPE, scores=None
    )
    card = render(Adapter(UPDATES, about))
    assert front_matter(card) == {
        "base_model": "google/flan-t5-base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "tags": ["tangora", "lora"],
    }
    rows = ("| mode | l-lora |", "| rank | 8 |", "| alpha | 16 |", "| learning rate | 0.005 |", "| seed | 7 |")
    for row in (*rows, "| steps | 200 |", "| target modules | q, v |", "(L-LoRA)", "shared A₀, seed 4"):
        assert row in card
    assert 'AutoModelForSeq2SeqLM.from_pretrained("google/flan-t5-base", revision="abc")' in code(card)
    assert "PeftModel.from_pretrained(base" in code(card)
    assert Adapter(UPDATES, about).fingerprint in card
    assert "licen" not in card.lower()


def test_a_fused_adapter():
    info = fused(parameters={"density": 0.2}, rank=8, truncation_error=0.0123)
    card = render(Adapter(UPDATES, Metadata(base=BASE, fused=info)))
    assert front_matter(card)["tags"] == ["tangora", "lora", "model-merging"]
    for text in ("# 2 tasks in one: sst2, trec6", "| method | `ties` |", "| density | `0.2` |", "| rank | 8 |"):
        assert text in card
    assert "| a | sst2 | 0.3 | `0000000000000000` |" in card
    assert "| b | trec6 | -0.5 | `1111111111111111` |" in card
    assert "0.0123 (relative, Frobenius" in card
    assert "How it was trained" not in card


def test_an_exact_fusion_says_so():
    assert "none: exact" in render(Adapter(UPDATES, Metadata(base=BASE, fused=fused())))


def test_weights_per_site_point_to_the_sidecar():
    card = render(Adapter(UPDATES, Metadata(base=BASE, fused=fused(weights={"layer": [0.1, 0.2]}))))
    assert "| a | sst2 | per site |" in card
    assert "The weight of every site is in `tangora.json`" in card


@pytest.mark.parametrize(("selection", "marked"), [("validation", False), ("oracle", True)])
def test_scores_name_their_split_and_mark_an_oracle(selection, marked):
    scores = {"split": "test", "selection": selection, "tasks": {"sst2": 0.91234}}
    card = render(Adapter(UPDATES, Metadata(base=BASE, fused=fused(), scores=scores)))
    assert "On the test split" in card
    assert ("| sst2 | 0.9123 † |" in card) == marked
    assert ("† oracle" in card) == marked
    assert ("chosen on validation data" in card) != marked


def test_full_fine_tuning_is_applied_by_tangora():
    about = Metadata(kind="full", task="sst2", mode="full", base=BASE)
    card = render(Adapter({"layer.weight": Dense(torch.ones(2, 2))}, about))
    assert "library_name" not in front_matter(card)
    assert ".apply_(base)" in code(card)
    assert "peft" not in card


@pytest.mark.parametrize("model", ["builtin:quickstart", "/some/folder", "./x", None])
def test_only_a_hub_id_is_named_to_the_hub(model):
    card = render(Adapter(UPDATES, Metadata(base=BaseInfo(model=model, family="image-zero-shot"))))
    assert "base_model" not in front_matter(card)
    assert ("tangora.load_base(" in code(card)) == (model == "builtin:quickstart")


def test_siglip_has_its_own_class():
    base = BaseInfo(model="google/siglip-base-patch16-224", family="image-zero-shot")
    assert "from transformers import SiglipVisionModel" in code(render(Adapter(UPDATES, Metadata(base=base))))


def test_names_are_not_markup():
    info = fused(parents=[Parent(name="<b>|`x`\n# y", task="[a](b)", fingerprint="0" * 64)], weights=[1.0])
    card = render(Adapter(UPDATES, Metadata(base=BASE, fused=info)))
    assert r"\<b\>\|\`x\` \# y" in card
    assert r"\[a\]\(b\)" in card or r"\[a\](b)" in card
    assert not re.search(r"(?<!\\)<b>", card)


def test_a_card_of_next_to_nothing():
    card = render(Adapter({}, Metadata()))
    assert "# An adapter" in card
    assert "the/base-model" in code(card)
