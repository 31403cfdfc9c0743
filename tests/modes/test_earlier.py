"""Adapters whose keys do not cover code: the keys that they have, and what makes one of them unfit."""

from __future__ import annotations

import json

import pytest

from tangora.config.settings import FinetuneConfig
from tangora.modes.earlier import earlier_key, is_earlier

BASE = "fa90bab2f5654d1345e778abe609ae4b2150a50d0a43ac8d5700dc394a7dc351"
ROWS = "f2a7bce4c70edb15c2811ffc26a179ad5a07024773ae5771b3730048521b8d0e"
TRAINING = {"steps": 3, "batch_size": 4, "evaluate_every": 1, "early_stopping": 2}
OF = {"base": BASE, "task": "good", "rows": ROWS, "family": "text-zero-shot"}

WRITTEN = {  # by the last version whose keys did not cover code, for the configuration and data above
    "lora": "466e06718bddbf576edec3c6649fd5dff4b55eff92055ff82e7690824995d77c",
    "l-lora": "08e7926917da79f2e880f65ba4ef1cfffb61550d5b65063316bb59b99f166d8f",
    "tangent": "09ea4cc74eecaab1278152b9a98d4426dbef82cccc91f75fa339cd96e4873f9d",
    "full": "987cdf4b5e6a1d402e073ee5c5818de40d2344360e5de2ab2d7cbd70551938fb",
    "full-tangent": "343f1c4d2bb8614b1b7d51aad556db0bf0a5d3172eac084d56ff2e4c34b71725",
}


def config_of(train, **more):
    lora = {"r": 1, "target_modules": ["query"]}
    return FinetuneConfig(**{"mode": train, "train": train, "lora": lora, "training": TRAINING, **more}).resolved()


def written(mode="lora"):
    """``tangora.json`` as that version wrote it."""
    config = config_of(mode).model_dump(mode="json")
    pair = {"lora": ("adapter", "none"), "full": ("full", "none"), "full-tangent": ("full", "model")}[mode]
    start = {"seed": 0, "a_init": "shared", "init": True, "fingerprint": "any"}
    return {
        "format": 1,
        "tangora": "0.1.0",
        "kind": "lora" if mode == "lora" else "full",
        "mode": mode,
        "task": "good",
        "base": {"model": "somewhere", "revision": None, "fingerprint": BASE, "family": "text-zero-shot"},
        "linearize": pair[1],
        "initial": start if mode == "lora" else None,
        "seed": 0,
        "stage": WRITTEN[mode],
        "recipe": {**config, "train": pair[0], "linearize": pair[1]},
        "fused": None,
        "distilled": None,
        "scores": None,
        "verified": None,
    }


@pytest.mark.parametrize("mode", WRITTEN)
def test_the_key_is_the_one_that_was_written(mode):
    assert earlier_key(config_of(mode), **OF) == WRITTEN[mode]


def test_a_setting_of_the_training_that_there_was_not_has_no_such_key():
    assert earlier_key(config_of("lora", training={**TRAINING, "sharpness": 0.1}), **OF) is None


def test_what_could_not_be_trained_then_has_no_such_key():
    assert earlier_key(config_of("lora"), **{**OF, "family": "another-package"}) is None
    plugin = config_of("lora").model_copy(update={"train": "another-package"})
    assert earlier_key(plugin, **OF) is None


@pytest.mark.parametrize("mode", ["lora", "full", "full-tangent"])
def test_an_adapter_of_the_same_configuration_is_taken(mode, tmp_path):
    (tmp_path / "tangora.json").write_text(json.dumps(written(mode)))
    assert is_earlier(tmp_path, config_of(mode), **OF)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "0" * 64},
        {"mode": "another"},
        {"task": "plain"},
        {"seed": 1},
        {"kind": "full"},
        {"linearize": "module"},
        {"train": "tangent"},
        {"joint": ["good", "plain"]},
        {"initial": None},
        {"initial": {"seed": 1, "a_init": "shared", "init": True}},
        {"initial": {"seed": 0, "a_init": "per_task", "init": True}},
        {"initial": {"seed": 0, "a_init": "shared", "init": "gaussian"}},
        {"base": {"fingerprint": "another", "family": "text-zero-shot"}},
        {"base": {"fingerprint": BASE, "family": "image-zero-shot"}},
        {"distilled": {"teacher": "t", "tasks": ["good"], "split": "train", "rows": 3}},
        {"fused": {"method": "average", "space": "delta", "parents": [], "weights": []}},
        {"recipe": None},
        {"recipe": {**written()["recipe"], "seed": 1}},
        {"recipe": {**written()["recipe"], "train": "full"}},
        {"recipe": {**written()["recipe"], "training": {**TRAINING, "steps": 4}}},
        {"recipe": {**written()["recipe"], "odd": 1}},
    ],
    ids=str,
)
def test_metadata_that_disagree_make_an_adapter_unfit(change, tmp_path):
    (tmp_path / "tangora.json").write_text(json.dumps({**written(), **change}))
    assert not is_earlier(tmp_path, config_of("lora"), **OF)


def test_how_often_a_checkpoint_was_written_does_not_matter(tmp_path):
    recipe = {**written()["recipe"], "training": {**written()["recipe"]["training"], "checkpoint_every": 7}}
    (tmp_path / "tangora.json").write_text(json.dumps({**written(), "recipe": recipe}))
    assert is_earlier(tmp_path, config_of("lora"), **OF)


@pytest.mark.parametrize(
    "asked", [{"base": "another"}, {"task": "plain"}, {"rows": "another"}, {"family": "image-zero-shot"}], ids=str
)
def test_another_base_or_task_is_not_served(asked, tmp_path):
    (tmp_path / "tangora.json").write_text(json.dumps(written()))
    assert not is_earlier(tmp_path, config_of("lora"), **{**OF, **asked})


@pytest.mark.parametrize("change", [{"seed": 1}, {"mode": "other"}, {"lora": {"r": 2}}, {"training": {"steps": 4}}])
def test_another_configuration_is_not_served(change, tmp_path):
    (tmp_path / "tangora.json").write_text(json.dumps(written()))
    assert not is_earlier(tmp_path, config_of("lora", **change), **OF)


def test_a_folder_without_metadata_holds_nothing(tmp_path):
    assert not is_earlier(tmp_path, config_of("lora"), **OF)
    (tmp_path / "tangora.json").write_text("{")
    assert not is_earlier(tmp_path, config_of("lora"), **OF)
