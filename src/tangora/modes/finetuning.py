"""Fine-tune: from a base, one or more tasks and a configuration to adapters, by the configuration's mode.

A mode adapts the base in place and restores it bit for bit, so that one base serves every task of a run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tangora.adapters.metadata import FILE
from tangora.errors import ArgumentError
from tangora.modes.contract import Bench, OnStep, mode_of
from tangora.support.extras import require
from tangora.support.files import atomic_dir, refuse_output, write_json
from tangora.support.publishing import claimed, remove_claimed
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.tasks import Base

__all__ = ["finetune", "in_work_folder", "train_to", "write_trained"]


@overload
def finetune(
    base: Base,
    task: Task,
    config: FinetuneConfig,
    *,
    out: Path | None = None,
    scratch: Path | None = None,
    stage: str | None = None,
    on_step: OnStep | None = None,
    logs: Path | None = None,
    overwrite: bool = False,
) -> Adapter: ...


@overload
def finetune(
    base: Base,
    task: Sequence[Task],
    config: FinetuneConfig,
    *,
    out: Path | None = None,
    scratch: Path | None = None,
    stage: str | None = None,
    on_step: OnStep | None = None,
    logs: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Adapter]: ...


def finetune(
    base: Base,
    task: Task | Sequence[Task],
    config: FinetuneConfig,
    *,
    out: Path | None = None,
    scratch: Path | None = None,
    stage: str | None = None,
    on_step: OnStep | None = None,
    logs: Path | None = None,
    overwrite: bool = False,
) -> Adapter | dict[str, Adapter]:
    """Train an adapter on a task, or with a joint mode on several tasks at once.

    The same seed gives the same adapter, bit for bit on one machine, whatever ran before in the process and however
    often the run was killed and started again. Under ``accelerate launch`` or ``torchrun`` every process trains
    (``batch_size`` is per process), the first one writes, and all return the same adapter.

    Args:
        base: the model; adapted in place and restored.
        task: its ``train`` split is trained on, its ``validation`` split is scored. Several, for a joint mode: an
            adapter for each is returned, by the task's name.
        config: a resolved mode of a recipe.
        out: folder for the adapter and ``training.json`` (loss and validation curves, wall time, parameter counts). For
            several tasks, it contains one such folder for each.
        scratch: folder for checkpoints to resume from, removed at the end; None for no checkpoints.
        stage: key of the adapter's inputs, recorded in ``tangora.json``.
        on_step: called after each step with (step, total steps, loss), in the main process.
        logs: folder for TensorBoard; default: ``logs/<mode>/<task>``.
        overwrite: replace ``out``.

    Raises:
        ArgumentError: several tasks for a mode that trains one at a time.
        ModelError: a target or a pattern matches nothing, initial values that cannot be used, or a loss that is not
            finite; nothing is written then.
        OutputError: ``out`` exists and ``overwrite`` is false, or cannot be written.
        MissingExtraError: the extra ``train`` is not installed.
    """
    one = isinstance(task, Task)
    tasks = [task] if isinstance(task, Task) else list(task)
    folders = {} if out is None else {t.name: out if one else Path(out) / t.name for t in tasks}
    bench = Bench(base, scratch, logs, on_step)
    made = train_to(bench, tasks, config, folders, overwrite=overwrite, extra={"stage": stage})
    return made[tasks[0].name] if one else made


def train_to(
    bench: Bench,
    tasks: Sequence[Task],
    config: FinetuneConfig,
    folders: Mapping[str, Path],
    *,
    overwrite: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Adapter]:
    """Train by the mode of ``config``, and write each task's adapter with ``training.json`` into its folder.

    Args:
        bench: base, folders and callbacks; its checkpoints are removed once the adapters are written.
        tasks: one, or several if the mode is joint.
        config: a resolved mode of a recipe.
        folders: task -> folder; empty to write nothing.
        overwrite: replace folders that exist.
        extra: metadata to add to the adapters, such as ``stage``.

    Raises:
        ArgumentError, ModelError, OutputError, MissingExtraError: as `finetune`.
    """
    require("train", purpose="training")
    mode = mode_of(config)
    if len(tasks) != 1 and not (mode.joint and tasks):
        fix = "give one task, or choose a joint mode"
        raise ArgumentError(f"mode {config.train} trains one task at a time", got=len(tasks), where="tasks", fix=fix)
    for folder in folders.values():
        refuse_output(folder, overwrite)
    mode.check(bench.base, config)
    with in_work_folder(bench.scratch, next(iter(folders.values()), None)):
        trained = mode.train(bench, tasks, config)
        made = {name: _stamped(bench, adapter, name, tasks, extra) for name, adapter in trained.items()}
        made = {task.name: _measured(bench, made[task.name], task) for task in tasks}
        write_trained({folder: (made[name], bench.records.get(name)) for name, folder in folders.items()}, overwrite)
    return made


@contextlib.contextmanager
def in_work_folder(work: Path | None, out: Path | None) -> Iterator[None]:
    """Lock the folder of checkpoints for the block, so that two trainings do not share it, and remove it at the end.

    After an error it stays, to resume from. The first process of several locks it, and the first on each machine
    removes it.

    Args:
        work: the folder; None if there is none.
        out: the output; None if nothing is written.
    """
    if work is None:
        yield
    elif os.environ.get("RANK", "0") == "0":  # set by torchrun and by accelerate
        with claimed(work, out if out is not None else work):
            yield
            _remove(work)
    else:
        yield
        if os.environ.get("LOCAL_RANK") == "0":
            _remove(work)


def _remove(work: Path) -> None:
    from tangora.modes.trainer import forget_checkpoints  # deferred: imports transformers

    forget_checkpoints(work)
    remove_claimed(work)


def _stamped(
    bench: Bench, adapter: Adapter, task: str, tasks: Sequence[Task], extra: Mapping[str, Any] | None
) -> Adapter:
    """Return the adapter with its heads and metadata: its task, tasks trained together with it, and ``extra``."""
    together = [t.name for t in tasks] if len(tasks) > 1 else None
    metadata = {"task": task, "joint": together, **(extra or {})}
    heads, records = {**adapter.heads, **bench.heads}, {**adapter.records, **bench.head_records}
    return replace(adapter, metadata=adapter.metadata.model_copy(update=metadata), heads=heads, records=records)


def _measured(bench: Bench, adapter: Adapter, task: Task) -> Adapter:
    """Return the adapter with its scores, if it answers in another way than its files by themselves suggest."""
    from tangora.modes.both_ways import scored_both_ways  # deferred: torch

    return scored_both_ways(bench.base, adapter, task)


def write_trained(made: Mapping[Path, tuple[Adapter, Mapping[str, Any] | None]], overwrite: bool) -> None:
    """Write adapters with their ``training.json`` from the first process only, and let the others wait.

    Args:
        made: folder -> adapter, and the content of ``training.json`` if there is any.
        overwrite: replace folders that exist.
    """
    from accelerate import PartialState  # deferred: takes a second to import

    process = PartialState()
    for folder, (adapter, record) in made.items() if process.is_main_process else ():
        with atomic_dir(folder, overwrite=overwrite, record=FILE) as staging:
            adapter.save(staging)
            if record is not None:
                write_json(staging / "training.json", record)
    process.wait_for_everyone()
