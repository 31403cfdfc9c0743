"""The key of an adapter: a hash of all its inputs, so that it is neither trained twice nor reused wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from tangora.config.places import mapped
from tangora.modes.contract import mode_of
from tangora.support.files import digest
from tangora.support.seams import FAMILIES, METRICS
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig

__all__ = ["MACHINERY", "stage_key"]

MACHINERY = {"report_to", "workers", "checkpoint_every"}
_UNDECIDING = (
    "tangora.adapters.card",
    "tangora.adapters.in_peft",
    "tangora.cli",
    "tangora.errors",
    "tangora.progress",
    "tangora.report",
    "tangora.support.seams",
)
"""Packages that a mode imports and that do not affect the weights that it trains."""


def stage_key(
    config: FinetuneConfig, base: str, tasks: Mapping[str, str], family: str, metrics: Iterable[str] = ()
) -> str:
    """Return the key that ``tangora.json`` keeps as ``stage``.

    It covers the code of mode and family with everything that this imports from Tangora, the mode's settings, the
    seed, the base's weights and the tasks' rows. It leaves out what cannot change the result: trackers, data loader
    processes, the interval of checkpoints. Nothing is loaded for it but files that the mode's settings name.

    Args:
        config: a resolved mode of a recipe.
        base: fingerprint of the base's weights.
        tasks: name -> fingerprint of the task's data, in order.
        family: of the base.
        metrics: of the tasks; their code determines which weights are kept if training stops early.
    """
    watched = [METRICS.get(name) for name in sorted(set(metrics)) if config.training.early_stopping]
    mode, chosen = mode_of(config), config.resolved().settings
    read: Callable[[FinetuneConfig], list[object]] | None = getattr(mode, "reads", None)
    if read is not None:  # what files contain is in the key, not where they are: another process may see them elsewhere
        chosen = mapped(chosen, lambda path, *_: "")
    settings = chosen.model_dump(mode="json", exclude={"training": MACHINERY})
    code = source_digest(mode, FAMILIES.get(family), *watched, without=_UNDECIDING)
    inputs = ["expert", code, config.train, config.mode, settings, config.seed, base, list(tasks.items())]
    return digest([*inputs, *(read(config) if read is not None else ())])
