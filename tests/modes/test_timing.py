"""A step is timed on a training that leaves nothing behind."""

from __future__ import annotations

import pytest

from tangora.modes.memory import Memory
from tangora.modes.timing import _available, fits, step_seconds
from tangora.support.machine import Machine
from tangora.tasks.base import weights_fingerprint


@pytest.mark.parametrize(("kind", "mode"), [("text", "tangent"), ("multi", "full"), ("language", "lora")])
def test_the_base_is_as_before(families, kind, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = families[kind]
    config = case.config(mode)
    logged = config.model_copy(
        update={"training": config.training.model_copy(update={"report_to": ["tensorboard"], "evaluate_every": 1})}
    )
    assert step_seconds(case.base, [case.task], logged) > 0
    assert weights_fingerprint(case.base.backbone) == case.base.fingerprint
    assert list(tmp_path.iterdir()) == [], "no logs"


def test_weights_are_loaded_already_and_the_rest_must_fit(monkeypatch):
    monkeypatch.setattr("tangora.modes.timing._available", lambda: 100)
    assert fits(Memory({"weights": 10**9, "gradients": 99}, {}), Machine())
    assert not fits(Memory({"weights": 0, "gradients": 60, "activations": 60}, {}), Machine())
    monkeypatch.setattr("tangora.modes.timing._available", lambda: None)
    assert fits(Memory({"gradients": 10**18}, {}), Machine())


def test_the_free_memory_is_what_the_system_says():
    free = _available()
    assert free is None or 0 < free < 2**50
