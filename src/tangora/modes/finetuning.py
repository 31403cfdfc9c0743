"""From a base, a task and a configuration to an `Adapter`: LoRA, L-LoRA, or every weight of the model.

The base model is adapted in place, trained by `transformers.Trainer`, and put back as it was, bit for bit,
so that one base serves every task of a run.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tangora.adapters import initial
from tangora.adapters.adapter import Adapter, BaseInfo, InitialInfo, Metadata
from tangora.adapters.heads import HeadRecord
from tangora.config.recipe import FinetuneConfig
from tangora.errors import ModelError
from tangora.modes.preparation import Start, adapt, as_before, refuse_running_statistics, switch_on
from tangora.support.files import atomic_dir, digest, refuse_existing, write_json, writing
from tangora.support.seams import METRICS
from tangora.tangent.linearization import linear_factors
from tangora.tasks.model import make_readout
from tangora.updates.task_vector import Dense, Update

if TYPE_CHECKING:
    from tangora.modes.distillation import Teacher
    from tangora.modes.trainer import QuietTrainer
    from tangora.tasks import Base, Task, TaskModel
    from tangora.tasks.contract import Readout

__all__ = ["finetune"]

OnStep = Callable[[int, int, float], None]


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
    teacher: Teacher | None = None,
) -> Adapter:
    """Train one adapter (or, with ``train: full``, every weight) on a task.

    The same seed gives the same adapter, bit for bit on one machine, whatever ran before in the process and however
    often the run was killed and started again. Under ``accelerate launch`` or ``torchrun`` every process trains
    (``batch_size`` is per process), the first one writes, and all return the same adapter.

    Args:
        base: the model; adapted in place and put back as it was.
        task: its ``train`` split is trained on, its ``validation`` split is scored.
        config: a resolved mode of a recipe.
        out: folder for the adapter and ``training.json`` (loss and validation curves, wall time, parameter counts).
        scratch: folder for checkpoints to resume from, removed at the end; None: nothing to resume from.
        stage: what ``tangora.json`` shall say decided the adapter.
        on_step: called after each step with (step, total steps, loss), in the main process.
        logs: folder for TensorBoard; default: ``logs/<mode>/<task>``.
        overwrite: replace ``out``.
        teacher: whose features are followed instead of labels (`tangora.distill`).

    Raises:
        ModelError: a target or a pattern matches nothing, initial values that cannot be used, or a loss that is not
            finite; nothing is written then.
        OutputError: ``out`` exists and ``overwrite`` is false, or cannot be written.
    """
    from tangora.modes.trackers import trackers
    from tangora.modes.trainer import quiet, training_seed

    if out is not None:
        refuse_existing(out, overwrite)
    refuse_running_statistics(base.backbone)
    started = time.monotonic()
    seed = training_seed(config.seed, task.name)
    logs = logs or Path("logs") / config.mode / task.name
    with quiet(seed), _scratch(scratch, _identity(base, task, config)) as folder:
        with (
            trackers(config.training.report_to, logs) as watching,
            as_before(base.backbone, values=config.train == "full" and config.linearize == "none") as pristine,
        ):
            start = None if config.train == "full" else adapt(base.backbone, task.name, config)
            switch_on(base.backbone, config)
            readout = make_readout(task, base)
            make = teacher.student(base, task) if teacher else _task_model(base, task, config, readout)
            trainer = _trainer(make, base, task, config, seed, folder, scratch is not None, on_step)
            for tracker in watching:
                trainer.add_callback(tracker)
            _fit(trainer, folder, config)
            updates = _updates(make(), pristine) if start is None else linear_factors(start.model)
            record = _record(trainer, started)
        adapter = _adapter(base, task, config, updates, start, stage)
        if teacher is None:
            adapter = replace(adapter, heads=_heads(task, readout), records=_records(task))
        else:
            about = adapter.metadata.model_copy(update={"distilled": teacher.about})
            adapter = replace(adapter, metadata=about, heads=teacher.heads, records=teacher.records)
        if out is not None and trainer.is_world_process_zero():
            with atomic_dir(out, overwrite=overwrite) as staging:
                adapter.save(staging)
                write_json(staging / "training.json", record)
        trainer.accelerator.wait_for_everyone()
    return adapter


def _heads(task: Task, readout: Readout) -> dict[str, dict[str, Tensor]]:
    """The task's trained head, if its readout has parameters."""
    state = cast(nn.Module, readout).state_dict()
    return {task.name: {name: value.detach().float().cpu().clone() for name, value in state.items()}} if state else {}


def _records(task: Task) -> dict[str, HeadRecord]:
    return {task.name: HeadRecord(**task.record)} if task.record else {}


def _task_model(base: Base, task: Task, config: FinetuneConfig, readout: Readout) -> Callable[[], TaskModel]:
    """Makes the model that is trained; another one of the same weights with every call."""
    from tangora.tasks import TaskModel

    if config.linearize != "model":
        return lambda: TaskModel(base.backbone, task, base, readout)
    from tangora.tangent import Offsets, TangentTaskModel

    offsets = Offsets(base.backbone) if config.train == "full" else None
    return lambda: TangentTaskModel(base.backbone, task, base, offsets, readout)


def _trainer(
    make: Callable[[], TaskModel],
    base: Base,
    task: Task,
    config: FinetuneConfig,
    seed: int,
    folder: Path,
    resumable: bool,
    on_step: OnStep | None,
) -> QuietTrainer:
    from tangora.modes.trainer import QuietTrainer, Rows, Watch, training_arguments
    from tangora.tasks import collate

    training = config.training
    every = {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
    keep = {"save_strategy": "steps", "save_steps": training.checkpoint_every}
    arguments = training_arguments(
        training,
        seed,
        folder,
        config.learning_rate,
        run_name=f"{config.mode}/{task.name}",
        **(every if training.evaluate_every and "validation" in task.splits else {"eval_strategy": "no"}),
        **(keep if resumable and training.checkpoint_every else {"save_strategy": "no"}),
    )
    drawn = training.steps * training.batch_size * training.gradient_accumulation * arguments.world_size
    rows = Rows(task.splits["train"].dataset(), drawn, initial.seed_of("order", config.seed, task.name))
    watch = Watch(
        f"task {task.name}, mode {config.mode}",
        _validation(make, task),
        METRICS.get(task.metric).higher_is_better,
        training.early_stopping,
        on_step,
    )
    return QuietTrainer(make(), arguments, rows, collate(task, base), watch)


def _validation(make: Callable[[], TaskModel], task: Task) -> Callable[[], tuple[float, float]] | None:
    """Score and mean loss on the validation split, in float32, with a task model that no trainer has wrapped."""
    from tangora.tasks import predict, score

    if "validation" not in task.splits:
        return None
    split = task.splits["validation"]
    model = make()

    def validate() -> tuple[float, float]:
        device = next(model.backbone.parameters()).device
        predictions = predict(model.to(device), split, batch_size=64)
        return score(task.metric, predictions.values, split.targets), float(torch.as_tensor(predictions.losses).mean())

    return validate


def _fit(trainer: QuietTrainer, folder: Path, config: FinetuneConfig) -> None:
    """Train, from the last checkpoint in ``folder`` if there is one, and settle which weights are kept."""
    from tangora.modes.trainer import last_checkpoint

    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    done = trainer.validations()
    if trainer.watch.validate is not None and (not done or done[-1]["step"] != trainer.state.global_step):
        trainer.evaluate()
    if trainer.watch.best:
        trainer.load_best()
    if bad := [name for name, p in trainer.trained().items() if not bool(torch.isfinite(p).all())]:
        fix = f"lower training.learning_rate (now {config.learning_rate:g})"
        raise ModelError("a trained weight is not finite", got=bad[0], where=trainer.watch.name, fix=fix)


@torch.no_grad()
def _updates(model: TaskModel, pristine: Mapping[str, Tensor]) -> dict[str, Update]:
    """Parameter name -> what training added, where it added anything; tied parameters once."""
    offsets = getattr(model, "offsets", None)
    if offsets is not None:
        changes = {name: offset.detach().float().cpu() for name, offset in offsets.named().items()}
    else:
        changes = {name: (p.cpu() - pristine[name]).float() for name, p in model.backbone.named_parameters()}
    return {name: Dense(change) for name, change in changes.items() if bool(change.any())}


def _record(trainer: QuietTrainer, started: float) -> dict[str, Any]:
    """What ``training.json`` says."""
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    parameters = list(trainer.parameters())
    return {
        "steps": [entry["step"] for entry in losses],
        "loss": [entry["loss"] for entry in losses],
        "validation": trainer.validations(),
        "seconds": round(time.monotonic() - started, 3),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "total": sum(p.numel() for p in parameters),
    }


def _adapter(
    base: Base,
    task: Task,
    config: FinetuneConfig,
    updates: Mapping[str, Update],
    start: Start | None,
    stage: str | None,
) -> Adapter:
    where = base.config
    lora = config.lora
    metadata = Metadata(
        kind="full" if start is None else "lora",
        mode=config.mode,
        task=task.name,
        base=BaseInfo(model=where.model, revision=where.revision, fingerprint=base.fingerprint, family=where.family),
        linearize=config.linearize,
        initial=None
        if start is None
        else InitialInfo(
            seed=config.seed, a_init=lora.a_init, init=lora.init, fingerprint=initial.fingerprint(start.initial)
        ),
        seed=config.seed,
        stage=stage,
        recipe=config.resolved().model_dump(mode="json"),
    )
    if start is None:
        return Adapter(updates=updates, metadata=metadata)
    named = start.config | {"base_model_name_or_path": where.model, "revision": where.revision}
    return Adapter(updates, metadata, config=named, initial=start.initial, embeddings=start.embeddings)


def _identity(base: Base, task: Task, config: FinetuneConfig) -> str:
    """Hash of what decides a training run: a checkpoint of another one is not resumed."""
    import os
    from importlib.metadata import version

    machinery = {"report_to", "workers", "checkpoint_every"}
    settings = config.resolved().model_dump(mode="json", exclude={"training": machinery})
    versions = [version(name) for name in ("torch", "transformers", "peft", "accelerate")]
    return digest([settings, base.fingerprint, task.name, task.fingerprint, versions, os.environ.get("WORLD_SIZE")])[
        :16
    ]


@contextlib.contextmanager
def _scratch(scratch: Path | None, identity: str) -> Iterator[Path]:
    """The folder of this run's checkpoints; kept when the block raises, unless nobody asked for it."""
    if scratch is None:
        with tempfile.TemporaryDirectory(prefix="tangora-") as temporary:
            yield Path(temporary)
        return
    folder = scratch / identity
    with writing(scratch):
        folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(scratch, ignore_errors=True)
