"""The contract suite over our own families, and what it catches."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tangora.config.tasks import BaseConfig, BaseSettings, TaskConfig, base_settings
from tangora.errors import PluginError, RecipeError
from tangora.support.seams import FAMILIES
from tangora.tasks.contract import AnswerForm
from tangora.tasks.families.text_zero_shot import TextZeroShot
from tangora.testing import check_family
from tangora.testing._readout import check_value

COLORS = ["red", "green", "blue"]


@pytest.fixture
def inputs(
    tiny_bert,
    tiny_clip,
    tiny_t5,
    tiny_vit,
    tiny_swin,
    tiny_llama,
    text_data,
    image_data,
    scene_data,
    several_data,
    sum_data,
):
    """Family -> tiny base settings and task settings."""
    texts = {"parquet": {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}}
    images = {"npz": {split: str(image_data / f"{split}.npz") for split in ("train", "test")}}
    tagged = {"jsonl": {split: str(several_data / f"{split}.jsonl") for split in ("train", "test")}}
    sums = {"jsonl": {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}}
    text = {"name": "t", "source": texts, "labels": COLORS}
    scenes = {"npz": {split: str(scene_data / f"{split}.npz") for split in ("train", "test")}}
    segments = {"name": "d", "source": scenes, "label": "classes", "labels": ["background", *COLORS]}
    image = {"name": "i", "source": images, "image": "images", "label": "labels", "labels": COLORS}
    return {
        "text-zero-shot": ({"model": str(tiny_bert)}, text),
        "image-zero-shot": ({"model": str(tiny_clip)}, image),
        "text-to-text": ({"model": str(tiny_t5), "max_new_tokens": 5}, text | {"metric": "exact_match"}),
        "causal-lm": ({"model": str(tiny_llama), "max_new_tokens": 12}, {"name": "s", "source": sums}),
        "vision-language": (
            {"model": str(tiny_llama), "vision": str(tiny_clip), "max_length": 64, "max_new_tokens": 12},
            image | {"prompt": "which color?", "target": "{label}", "metric": "exact_match"},
        ),
        "text-classification": ({"model": str(tiny_bert)}, text),
        "image-classification": ({"model": str(tiny_vit)}, image),
        "image-dense": ({"model": str(tiny_swin), "width": 8}, segments),
        "token-classification": ({"model": str(tiny_bert)}, {"name": "w", "source": tagged, "metric": "tag_accuracy"}),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_contract_holds(name, inputs):
    assert FAMILIES.get(name).name == name
    check_family(FAMILIES.get(name), *inputs[name])


def test_families_are_listed_and_recipes_read_without_torch():
    probe = (
        "import sys; from tangora.config.recipe import load_recipe; load_recipe('quickstart');"
        "from tangora.support.seams import FAMILIES, METRICS; FAMILIES.all(); METRICS.all();"
        "assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(
        RecipeError, match=r"no such family, got 'text-zeroshot' at family \(base\)\. Did you mean 'text-z"
    ):
        base_settings({"family": "text-zeroshot", "model": "x"}, "base")
    with pytest.raises(PluginError, match="no such family"):
        FAMILIES.get("text-zeroshot")


def array(values, dtype="uint8"):
    return np.array(values, dtype=dtype)


class Wide(BaseSettings):
    width: int = 3


class Broken(TextZeroShot):
    """Right in everything but one thing."""

    name = "broken"

    def __init__(self, **changes):
        for name, value in changes.items():
            setattr(self, name, value)


def readout(change):
    """A readout method whose readouts are changed."""

    def made(task, base):
        found = TextZeroShot().readout(task, base)
        change(found)
        return found

    return made


def drifting(found):
    found.bias = nn.Parameter(torch.randn(3))


def rough(found):
    logits = found.logits
    found.logits = lambda features: logits(features).round()


def leaky(found):
    logits = found.logits
    found.logits = lambda features: logits(features - features.mean(0))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Broken(form=lambda task: AnswerForm("words", None)), "the kind of answers is one of"),
        (Broken(form=lambda task: AnswerForm("classes", "words")), "logits_over is one of"),
        (Broken(auto_class=lambda model: "NoSuchModel"), "auto_class names no class"),
        (Broken(decides=lambda config, base: {"scale": torch.rand(())}), "different fingerprints"),
        (Broken(examples=lambda table, config: iter(["one"])), "examples gives one per row"),
        (Broken(followed=lambda task: task), "features to follow are unit vectors"),
        (Broken(readout=readout(drifting)), "starts at other values every time"),
        (Broken(readout=readout(rough)), "no gradient reaches the backbone|the expansion is not the derivative"),
        (Broken(readout=readout(leaky)), "in a batch and"),
        (Broken(readout=readout(lambda found: setattr(found, "width", 2))), "width is 2, and there are 3 logits"),
    ],
)
def test_the_suite_catches_a_broken_family(broken, message, inputs):
    FAMILIES.register("broken", broken)
    try:
        with pytest.raises(AssertionError, match=message):
            check_family(broken, *inputs["text-zero-shot"])
    finally:
        FAMILIES.unregister("broken")


@pytest.mark.parametrize(
    ("kind", "answers", "targets", "wrong"),
    [
        ("classes", [0, 2], [1], [3, -1, "red"]),
        ("text", ["", "a b"], ["a", ("a", "b")], [1, (), ("a", 1)]),
        ("number", [0.5], [1.0], ["1"]),
        ("labels", [[], [0, 2]], [[1]], [[3], 1, ["red"]]),
        ("tags", [[], ["red", "blue", "red"]], [["green"]], [[0, 1], ["black"], "red"]),
        ("likelihood", [[0.5, 3]], [7], ["7", [0.5, 3]]),
        (
            "class_map",
            [array([[0, 2]])],
            [array([[1, 255]])],
            [array([[3]]), array([0]), [[0]], array([[0.5]], "float32")],
        ),
        ("binary_map", [array([[0, 255]])], [array([[1, 255]])], [array([[2]]), array([[0.5]], "float32")]),
        ("number_map", [array([[0.5]], "float32")], [array([[0.5, np.nan]], "float32")], [array([[1]]), 0.5]),
    ],
)
def test_values_of_every_kind(kind, answers, targets, wrong):
    task = SimpleNamespace(form=AnswerForm(kind, None), labels=COLORS)
    for value in answers:
        check_value(value, task, "answer")
    for value in targets:
        check_value(value, task, "target")
    for value in wrong:
        with pytest.raises(AssertionError, match="target "):
            check_value(value, task, "target")


@pytest.mark.parametrize(("kind", "value"), [("text", ("a", "b")), ("likelihood", 0.5), ("likelihood", [0.5])])
def test_what_is_no_answer(kind, value):
    with pytest.raises(AssertionError, match=r"answer .* is not "):
        check_value(value, SimpleNamespace(form=AnswerForm(kind, None), labels=[]), "answer")


def test_settings_of_another_class_are_refused(inputs):
    FAMILIES.register("broken", Broken(base_settings=Wide))
    try:
        assert base_settings({"family": "broken", "model": "x", "width": 4}, "base").width == 4
        with pytest.raises(RecipeError, match=r"unknown key 'pooling' at pooling \(base\)"):
            base_settings({"family": "broken", "model": "x", "pooling": "cls"}, "base")
        with pytest.raises(ValueError, match="the settings of family broken are Wide, not BaseConfig"):
            BaseConfig(family="broken", model="x")
    finally:
        FAMILIES.unregister("broken")
    assert TaskConfig.model_fields.keys() > {"name", "source", "text", "prompt"}
