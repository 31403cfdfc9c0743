"""A polish layer by layer: its start in closed form, and the objective of ProDistill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tangora
from tangora.config.recipe import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.modes.finetuning import finetune
from tangora.polishing.polish import polish
from tangora.tasks.values import Split

TARGETS = ["query", "value", "dense"]


@pytest.fixture(scope="module")
def tasks(text_task):
    splits = {n: Split(rows.inputs, [(t + 1) % 3 for t in rows.targets]) for n, rows in text_task.splits.items()}
    other = replace(text_task, name="two", splits=splits, fingerprint=f"{text_task.fingerprint}-two")
    return [replace(text_task, name="one"), other]


@pytest.fixture(scope="module")
def experts(text_base, tasks):
    training = TrainingSettings(steps=40, batch_size=8, checkpoint_every=None, learning_rate=1e-2)
    config = FinetuneConfig(mode="lora", lora=LoraSettings(r=4, target_modules=TARGETS), training=training)
    return [finetune(text_base, task, config) for task in tasks]


def polished(experts, base, tasks, **settings):
    chosen = {"rank": 4, "rows": 24, "steps": 30, "batch_size": 4, "learning_rate": 1e-2, "recombined": 0}
    return polish(experts, base, tasks, progress=False, **{**chosen, **settings})


def far(info, when):
    return sum(getattr(info, when).values())


def test_it_trains(experts, text_base, tasks):
    for more in (
        {"objective": "layers"},
        {"objective": "layers", "initial": "layers"},
        {"initial": "layers", "steps": 0},
        {"initial": "layers"},
        {"objective": "layers", "initial": "random"},
        {"objective": "layers", "student": "entries"},
        {"objective": "layers", "student": "entries", "rank": None},
    ):
        made = polished(experts, text_base, tasks, **more)
        info = made.metadata.polished
        print(more, info.before, info.after, info.step, info.start_error, info.cut_error, made.metadata.kind)
    assert 0
