"""The section of `gpu.py` that takes training steps: the contenders of `train_step.py`, in one process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gpu_turns import Save, freed, in_turns, parts, tried
from step_models import SHAPES

STEPS = {"full": ("clip-vit-b16-64", "flan-t5-base-32", "llama-1b"), "tiny": ("tiny-clip", "tiny-t5", "tiny-llama")}
CONTENDERS = ("lora", "lora_frozen_a", "l_lora", "tangent", "tangent_jvp")
ROWS = 2  # of the batch on which contenders are compared
TOLERANCE = 1e-3
"""Largest difference between contenders, of the largest entry: float32, by other kernels."""


def steps(options: argparse.Namespace, save: Save) -> None:
    """One training step of every contender on every network."""
    found: dict[str, Any] = {"shapes": {}}
    for name, until in parts(STEPS[options.size], options.end):
        contenders = _steps_of(name, options, until)
        found["shapes"][name] = {"title": SHAPES[name].title, "contenders": contenders}
        save(found)


def _steps_of(name: str, options: argparse.Namespace, until: float) -> dict[str, dict[str, Any]]:
    """Check all in float32, build all in the dtype, and let them take turns."""
    from step_worker import Trainer, describe, versions

    references: dict[str, Any] = {}
    found = {c: tried(lambda c=c: {"check": _checked(name, c, options, references)}) for c in CONTENDERS}
    references.clear()
    trainers: dict[str, Trainer] = {}

    def prepared(contender: str) -> dict[str, Any]:
        before = _allocated(options.device)
        trainer = trainers[contender] = Trainer(SHAPES[name], _of(options, contender, options.dtype))
        return {**_memory(trainer, before), "versions": versions(), **describe(trainer)}

    for contender in [c for c in CONTENDERS if "error" not in found[c]]:
        found[contender] |= tried(lambda contender=contender: prepared(contender))
        if "error" in found[contender]:
            trainers.pop(contender, None)
    count = 10 if options.device.startswith("cuda") else 1
    works = {contender: _step(trainer, count) for contender, trainer in trainers.items()}
    for contender, timed in in_turns(works, until, options).items():
        found[contender] |= timed
    trainers.clear()
    works.clear()
    freed(options.device)
    return found


def _checked(name: str, contender: str, options: argparse.Namespace, references: dict[str, Any]) -> dict[str, float]:
    """The differences from the first contender.

    Raises:
        ValueError: this contender computes something else.
    """
    from step_worker import Trainer, differences, outcome

    shape = replace(SHAPES[name], batch=ROWS)
    trainer = Trainer(shape, _of(options, contender, "float32"))
    check = differences(outcome(trainer, options.seed), contender, references)
    del trainer
    freed(options.device)
    wrong = {key: value for key, value in check.items() if key != "effect_of_b" and not value <= TOLERANCE}
    if wrong or not check["effect_of_b"] > 10 * TOLERANCE:
        raise ValueError(f"it does not compute what the others do: {check}")
    return check


def _of(options: argparse.Namespace, contender: str, dtype: str) -> argparse.Namespace:
    return argparse.Namespace(contender=contender, device=options.device, dtype=dtype, seed=options.seed)


def _memory(trainer: Any, before: int | None) -> dict[str, Any]:
    """What the contender alone occupies, and what steps add; of the process on a CPU nothing can be told."""
    from step_worker import MEMORY_STEPS, WARM_UP, _occupied, _peak

    for _ in range(WARM_UP):
        trainer.step()
    trainer.wait()
    if before is None:
        return {"memory": []}
    after = _occupied(trainer.device)
    for _ in range(MEMORY_STEPS):
        trainer.step()
    trainer.wait()
    step, built = _peak(trainer.device) - after, after - before
    return {"memory": [{"built": built, "step": step, "peak": built + step}]}


def _step(trainer: Any, count: int) -> Callable[[], float]:
    def sample() -> float:
        trainer.wait()
        began = time.perf_counter()
        for _ in range(count):
            trainer.step()
        trainer.wait()
        return (time.perf_counter() - began) / count

    return sample


def _allocated(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    from step_worker import _occupied

    return _occupied(device)
