"""Measure what a training would take, on a few steps that are thrown away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangora.modes.contract import Bench, mode_of

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.memory import Memory
    from tangora.support.machine import Machine
    from tangora.tasks import Base, Task

__all__ = ["fits", "step_seconds"]

_TIMED = 2


def fits(memory: Memory, machine: Machine) -> bool:
    """Return whether a training is estimated to fit into the memory that is free once the base is loaded."""
    needed = sum(size for part, size in memory.training.items() if part != "weights")
    device = machine.torch_device
    if device.type == "cuda":
        return needed < torch.cuda.mem_get_info(device)[0]
    free = _available()
    return free is None or needed < free


def _available() -> int | None:
    """Return the bytes of memory that are free or can be freed; None if the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def step_seconds(base: Base, tasks: Sequence[Task], config: FinetuneConfig) -> float | None:
    """Return the seconds of a training step: the mean of steps after the first one, which also prepares.

    It is None where no steps are reported: in all processes but the first, and by a mode that reports none.

    Args:
        base: as before afterwards.
        tasks: their train rows are drawn, and nothing is scored.
        config: a resolved mode of a recipe.

    Raises:
        ModelError: the mode cannot train with these settings.
    """
    moments: list[float] = []
    bench = Bench(base, on_step=lambda *_: moments.append(time.perf_counter()))
    off: dict[str, Any] = {"evaluate_every": None, "early_stopping": None, "checkpoint_every": None, "report_to": []}
    timed = max(_TIMED, len(tasks))  # the tasks of a joint training take turns
    training = config.training.model_copy(update={"steps": 1 + timed, **off})
    rows = [replace(task, splits={"train": task.splits["train"]}) for task in tasks]
    mode_of(config).train(bench, rows, config.model_copy(update={"training": training}))
    if len(moments) < 2:
        return None
    return (moments[-1] - moments[0]) / (len(moments) - 1)
