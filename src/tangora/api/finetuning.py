"""`finetune`: train an adapter and show progress."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from tangora.api.shown import Shown, shown
from tangora.config.settings import FinetuneConfig
from tangora.modes.contract import reporting
from tangora.modes.finetuning import finetune as train
from tangora.tasks.cuts import cut_lines, cuts
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.modes.contract import OnStep
    from tangora.tasks import Base

__all__ = ["finetune"]

log = logging.getLogger("tangora")


@overload
def finetune(
    base: Base,
    task: Task,
    config: FinetuneConfig | None = None,
    *,
    out: Path | None = None,
    scratch: Path | None = None,
    stage: str | None = None,
    on_step: OnStep | None = None,
    logs: Path | None = None,
    overwrite: bool = False,
    progress: Shown = None,
) -> Adapter: ...


@overload
def finetune(
    base: Base,
    task: Sequence[Task],
    config: FinetuneConfig | None = None,
    *,
    out: Path | None = None,
    scratch: Path | None = None,
    stage: str | None = None,
    on_step: OnStep | None = None,
    logs: Path | None = None,
    overwrite: bool = False,
    progress: Shown = None,
) -> dict[str, Adapter]: ...


def finetune(
    base: Base,
    task: Task | Sequence[Task],
    config: FinetuneConfig | None = None,
    *,
    out: Path | None = None,
    scratch: Path | None = None,
    stage: str | None = None,
    on_step: OnStep | None = None,
    logs: Path | None = None,
    overwrite: bool = False,
    progress: Shown = None,
) -> Adapter | dict[str, Adapter]:
    """Train an adapter on a task, or with a joint mode on several tasks at once.

    The same seed gives the same adapter, bit for bit on one machine, whatever ran before in the process and however
    often the training was killed and started again. Under ``accelerate launch`` or ``torchrun`` every process trains
    (``batch_size`` is per process), the first one writes, and all return the same adapter.

    Args:
        base: the model; adapted in place and restored.
        task: its ``train`` split is trained on, its ``validation`` split is scored. Several, for a joint mode: an
            adapter for each is returned, by the task's name.
        config: the mode, rank, steps, ...; by default a LoRA adapter.
        out: folder for the adapter and ``training.json`` (loss and validation curves, wall time, parameter counts). For
            several tasks, it contains one such folder for each.
        scratch: folder for checkpoints to resume from, removed at the end; None for no checkpoints.
        stage: key of the adapter's inputs, recorded in ``tangora.json``.
        on_step: called after each step with (step, total steps, loss), in the main process.
        logs: folder for TensorBoard; default: ``logs/<mode>/<task>``.
        overwrite: replace ``out``.
        progress: whether to show a bar; by default in a terminal or a notebook.

    Raises:
        ArgumentError: several tasks for a mode that trains one at a time.
        ModelError: a target or a pattern matches nothing, initial values that cannot be used, or a loss that is not
            finite; nothing is written then.
        OutputError: ``out`` exists and ``overwrite`` is false, or cannot be written.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> task = tangora.load_task("colors", base, files, labels=["red", "green", "blue"])
    >>> config = tangora.FinetuneConfig(train="l-lora", lora={"r": 4}, training={"steps": 3})
    >>> tangora.finetune(base, task, config).metadata.task
    'colors'
    """
    chosen = config if config is not None else FinetuneConfig()
    several = [task] if isinstance(task, Task) else list(task)
    for line in cut_lines({one.name: cuts(one) for one in several}, ("train", "validation")):
        log.warning(line)
    with shown(progress) as bars:
        bars.begin(f"{chosen.mode} · {'+'.join(one.name for one in several)}", chosen.training.steps)
        watch = reporting(bars, on_step)
        made = train(
            base,
            task,
            chosen,
            out=out,
            scratch=scratch,
            stage=stage,
            on_step=watch,
            logs=logs,
            overwrite=overwrite,
        )
        bars.end()
    return made
