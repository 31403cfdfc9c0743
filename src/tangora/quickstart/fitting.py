"""Train and save the built-in models: shared by all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Progress", "Schedule", "fit", "save_model"]

Progress = Callable[[int, int, float], None]


class Schedule(Protocol):
    """The settings of a training."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        ...

    @property
    def learning_rate(self) -> float:
        """The peak."""
        ...

    @property
    def warmup(self) -> int:
        """Steps to the peak."""
        ...


def fit(
    model: Any, schedule: Schedule, loss_of: Callable[[], Tensor], progress: Progress, *, weight_decay: float = 0.0
) -> None:
    """Train a model by AdamW, with gradients clipped to norm 1.

    Args:
        model: changed in place, and left in training mode.
        schedule: linear warm-up, then half a cosine to zero.
        loss_of: draws a batch, and returns the model's loss on it.
        progress: called after each step with (steps done, steps, loss).
        weight_decay: of the optimizer.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, schedule))
    model.train()
    for step in range(schedule.steps):
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        progress(step + 1, schedule.steps, loss.item())


def _rate(step: int, schedule: Schedule) -> float:
    """Return the learning rate as a fraction of the peak."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def save_model(model: Any, folder: Path) -> None:
    """Write a model as ``from_pretrained`` expects it, without a progress bar."""
    from transformers.utils import logging  # deferred: it takes seconds to import

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # for one small file, it would only disturb ours
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
