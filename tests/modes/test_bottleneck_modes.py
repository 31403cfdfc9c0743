"""Modes of bottleneck adapters: trained, saved, loaded, resumed, and refused; on texts and on dense tasks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import tangora
from tangora.adapters.adapter import load
from tangora.config.bottleneck import PolyhistorLiteSettings
from tangora.config.recipe import Recipe
from tangora.errors import AdapterError, FusionError, ModelError, RecipeError
from tangora.modes.contract import Bench, is_fusable
from tangora.support.seams import MODES
from tangora.support.validation import validate
from tangora.testing import check_mode
from tangora.testing._tiny import tiny_base, tiny_tasks
from tangora.updates.task_vector import Dense

WRITING = ["hyperformer", "polyhistor", "polyhistor-lite"]
SMALL = {"embedding": 6, "hidden": 10, "projected": 7}


def config(train, steps=6, **keys):
    training = {
        "steps": steps,
        "batch_size": 4,
        "learning_rate": 2e-2,
        "checkpoint_every": 2,
        **keys.pop("training", {}),
    }
    small = {} if train == "bottleneck" else SMALL
    return tangora.FinetuneConfig(train=train, training=training, **small, **keys).resolved()


@pytest.mark.parametrize(
    ("train", "keys"),
    [
        ("bottleneck", {"form": "parallel", "norm": "after"}),
        ("hyperformer", {"share": "stage", "form": "parallel"}),
        ("polyhistor-lite", {"norm": "after", "kernels": "released", "places": ["ffn"]}),
    ],
)
def test_the_promises_hold_with_other_keys(train, keys):
    check_mode(MODES.get(train), **keys)


class Killed(Exception):
    """A run that ends in the middle."""


@pytest.mark.parametrize("train", WRITING)
def test_a_killed_training_ends_with_the_same_adapters(train, tmp_path):
    base, tasks, mode = tiny_base(), tiny_tasks(2), MODES.get(train)
    whole = mode.train(Bench(base), tasks, config(train))

    def kill(step, total, loss):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        mode.train(Bench(base, tmp_path, on_step=kill), tasks, config(train))
    steps = []
    again = mode.train(Bench(base, tmp_path, on_step=lambda step, *_: steps.append(step)), tasks, config(train))
    assert steps == [5, 6]
    assert {n: a.fingerprint for n, a in again.items()} == {n: a.fingerprint for n, a in whole.items()}


@pytest.mark.parametrize("train", ["bottleneck", *WRITING])
def test_the_footprint_is_what_is_trained_and_written(train, tmp_path):
    base, tasks, mode = tiny_base(), tiny_tasks(1), MODES.get(train)
    bench = Bench(base)
    size = mode.footprint(base, config(train))
    adapter = mode.train(bench, tasks, config(train))["task0"]
    assert bench.records["task0"]["trainable"] == size.trainable
    assert 4 * sum(update.dense().numel() for update in adapter.updates.values()) == size.size
    # two layers of width 16 with adapters of width 4 at two places
    assert size.sites == 4
    assert size.size == 4 * 4 * (2 * 16 * 4 + 16 + 4)


@pytest.mark.parametrize("train", ["bottleneck", *WRITING])
def test_dense_tasks_are_learned_and_answered_from_the_folder(train, families, tmp_path):
    cases = [families[kind] for kind in ("segments", "marks", "depths")]
    base, tasks = cases[0].base, [replace(case.task, name=kind) for kind, case in zip("abc", cases, strict=True)]
    given = tasks if train != "bottleneck" else tasks[0]
    settings = config(train, 30, training={"checkpoint_every": None, "batch_size": 8})
    before = [tangora.evaluate(None, base, task)[task.name].loss for task in tasks]
    tangora.finetune(base, given, settings, out=tmp_path / "made", progress=False)
    for task, loss in zip(tasks if given is tasks else tasks[:1], before, strict=given is tasks):
        folder = tmp_path / "made" / task.name if given is tasks else tmp_path / "made"
        after = tangora.evaluate(folder, base, task)[task.name]
        assert after.loss < loss
        answers = tangora.predictor(folder, task=task.name, device="cpu")(cases[0].rows)
        for answer, value in zip(answers, after.values, strict=True):
            np.testing.assert_allclose(answer, value, rtol=1e-4, atol=1e-4)


def test_adapters_are_not_fused(tmp_path):
    base, tasks, mode = tiny_base(), tiny_tasks(2), MODES.get("polyhistor")
    assert not is_fusable(mode, {})
    made = mode.train(Bench(base), tasks, config("polyhistor"))
    with pytest.raises(FusionError, match="adds modules to the network"):
        tangora.fuse(list(made.values()), "average")


def test_what_cannot_be_trained_is_refused():
    base = tiny_base()
    for keys, message in (
        ({"reduction": 17}, "a layer of width 16 has no bottleneck"),
        ({"training": {"gradient_checkpointing": True}}, "would be of another task"),
    ):
        with pytest.raises(ModelError, match=message):
            MODES.get("polyhistor").check(base, config("polyhistor", **keys))
    with pytest.raises((RecipeError, ValueError), match="rank"):
        config("hyperformer", rank=3)
    with pytest.raises((RecipeError, ValueError), match="share"):
        config("polyhistor-lite", share="block")


def test_a_damaged_record_and_another_base_are_refused(tmp_path, tiny_clip):
    base, mode = tiny_base(), MODES.get("bottleneck")
    adapter = mode.train(Bench(base), tiny_tasks(1), config("bottleneck"))["task0"]
    adapter.save(tmp_path / "one")
    record = tmp_path / "one" / "tangora.json"
    content = json.loads(record.read_text())
    other = tangora.load_base(str(tiny_clip), family="image-zero-shot")
    with pytest.raises(ModelError, match="the base lacks a layer of the adapter"):
        mode.load_model(tmp_path / "one", other.backbone)
    content["modules"]["places"][0]["bottleneck"] = 3
    record.write_text(json.dumps(content))
    with pytest.raises(AdapterError, match="does not fit the modules"):
        mode.load_model(tmp_path / "one", tiny_base().backbone)
    del content["modules"]["places"]
    record.write_text(json.dumps(content))
    with pytest.raises(AdapterError, match="describes no bottleneck adapters"):
        mode.load_model(tmp_path / "one", tiny_base().backbone)
    assert isinstance(next(iter(load(tmp_path / "one").updates.values())), Dense)
    assert torch.is_tensor(next(iter(adapter.updates.values())).dense())


def test_the_page_has_the_keys_and_a_valid_recipe():
    page = (Path(__file__).parents[2] / "docs" / "systems" / "polyhistor.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    recipe = validate(Recipe, {"name": "page", **yaml.safe_load(block)}, "page")
    assert [mode.train for mode in recipe.modes.values()] == ["polyhistor", "polyhistor-lite", "bottleneck"]
    keys = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `")))
    )
    assert set(PolyhistorLiteSettings.model_fields) <= keys
