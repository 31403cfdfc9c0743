"""The key of an adapter: a hash of everything that decides it, so that it is not trained twice, nor reused wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tangora.modes.contract import mode_of
from tangora.support.files import digest
from tangora.support.seams import METRICS
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.tasks import Base, Task

__all__ = ["stage_key"]

_MACHINERY = {"report_to", "workers", "checkpoint_every"}
_UNDECIDING = (
    "tangora.adapters.card",
    "tangora.adapters.in_peft",
    "tangora.cli",
    "tangora.errors",
    "tangora.progress",
    "tangora.report",
    "tangora.support.seams",
)
"""Packages that a mode imports and that cannot decide what it trains."""


def stage_key(base: Base, tasks: Sequence[Task], config: FinetuneConfig) -> str:
    """Return the key that ``tangora.json`` keeps as ``stage``.

    It covers the mode's code with everything that it imports from Tangora, the settings that the mode takes, its seed,
    the base's weights and the tasks' rows. It does not cover what cannot change the result: trackers, data loader
    processes, how often a checkpoint is written.
    """
    mode = mode_of(config)
    metrics = [METRICS.get(task.metric) for task in tasks if config.training.early_stopping]
    settings = config.resolved().settings.model_dump(mode="json", exclude={"training": _MACHINERY})
    code = source_digest(mode, *metrics, without=_UNDECIDING)
    rows = [[task.name, task.fingerprint] for task in tasks]
    return digest(["expert", code, config.train, config.mode, settings, config.seed, base.fingerprint, rows])
