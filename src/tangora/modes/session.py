"""One training from its seed to its last weights: shared by all modes that train by gradients.

`training` opens a session: it silences libraries, seeds random states, provides a folder to resume from, and restores
the base bit for bit at the end. Inside, a mode prepares the base and calls `Session.fit`, which trains by
`transformers.Trainer`, resumes, validates, keeps the best weights, and records the curves.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from tangora.adapters.heads import HeadRecord
from tangora.errors import ModelError
from tangora.modes.ingredients import ingredients_of
from tangora.modes.mixture import Combine, Ordered, one_or_mixed
from tangora.modes.preparation import as_before, checkpoint_gradients, frozen_statistics
from tangora.modes.stage import stage_key
from tangora.modes.trackers import trackers
from tangora.modes.trainer import QuietTrainer, Watch, last_checkpoint, quiet, training_arguments, training_seed
from tangora.storage.held import entries
from tangora.storage.spread import places_of
from tangora.support.files import digest, writing
from tangora.tasks.cuts import cuts
from tangora.tasks.metrics import direction, score
from tangora.tasks.model import TaskModel, predict
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench
    from tangora.tasks.contract import Readout

__all__ = ["Session", "training"]

ModelOf = Callable[[Task], TaskModel]


@contextlib.contextmanager
def training(
    bench: Bench, tasks: Sequence[Task], config: FinetuneConfig, *, copy_weights: bool = False
) -> Iterator[Session]:
    """Open a training of one task, or of several at once; the base is restored afterwards, also on an error.

    Running statistics of batch normalization stay those of the base.

    Args:
        bench: base, folders and callbacks.
        tasks: their ``train`` splits are trained on, and their ``validation`` splits are scored.
        config: a resolved mode of a recipe.
        copy_weights: keep a copy of the base's weights in `Session.pristine`, for a mode that changes them.
    """
    backbone, name = bench.base.backbone, _name(tasks)
    started, seed = time.monotonic(), training_seed(config.seed, name)
    logs = bench.logs or Path("logs") / config.mode / name
    with (
        quiet(seed),
        _checkpoints(bench, tasks, config) as folder,
        trackers(config.training.report_to, logs) as callbacks,
        as_before(backbone, values=copy_weights) as pristine,
        frozen_statistics(backbone),
    ):
        yield Session(bench, tuple(tasks), config, pristine, folder, seed, tuple(callbacks), started)


@dataclass(frozen=True)
class Session:
    """An open training.

    Attributes:
        bench, tasks, config: see `training`.
        pristine: parameter -> its value before, on the CPU; empty without ``copy_weights``.
        folder: of checkpoints.
        seed: of everything random.
        callbacks: those of TensorBoard and the like.
        started: its start, by the monotonic clock.
    """

    bench: Bench
    tasks: tuple[Task, ...]
    config: FinetuneConfig
    pristine: Mapping[str, Tensor]
    folder: Path
    seed: int
    callbacks: tuple[TrainerCallback, ...]
    started: float

    def fit(self, model_of: ModelOf, combine: Combine | None = None) -> None:
        """Train all parameters that require gradients, and leave the best or last weights in place.

        Args:
            model_of: task -> the model to train; a new one on the same weights with every call. Models of several
                tasks share a backbone.
            combine: makes one model of those of several tasks, such as a subclass of
                `tangora.modes.mixture.Mixture`. Batches are drawn by the mode's ``sampling``, if it has this key.

        Raises:
            ModelError: a loss or a weight is not finite.
        """
        model_of, readouts = _one_readout_a_task(self.bench.model_of or model_of)
        validated = all("validation" in task.splits for task in self.tasks)
        batch, sampling = self.config.training.batch_size, getattr(self.config.settings, "sampling", None)
        models = [model_of(task) for task in self.tasks]
        for model in models:
            model.losses_only = True
        self.run(
            lambda drawn: one_or_mixed(self.bench.base, self.tasks, drawn, batch, self.config.seed, sampling, combine),
            models,
            _validation(model_of, self.tasks) if validated else None,
            higher_is_better=_direction(self.tasks) == 1,
        )
        for task in self.tasks:
            state = cast(nn.Module, readouts[task.name]).state_dict()
            if state:
                self.bench.heads[task.name] = {n: value.detach().float().cpu().clone() for n, value in state.items()}
            if task.record:
                settings = {**task.record["base"], **self.bench.base.config.held}
                self.bench.head_records[task.name] = HeadRecord(**{**task.record, "base": settings})

    def run(
        self,
        ordered: Callable[[int], Ordered],
        models: Sequence[nn.Module],
        validate: Callable[[], tuple[float, float]] | None,
        *,
        higher_is_better: bool = True,
    ) -> None:
        """Train on rows in a given order, by the loss that the models return, and record the curves.

        Args:
            ordered: the number of rows in all -> rows in their order, their collator, and a function that combines the
                models; see `tangora.modes.mixture.one_or_mixed`.
            models: one for each task.
            validate: returns score and loss of the present weights; None if nothing is held out.
            higher_is_better: whether a higher score is better.

        Raises:
            ModelError: as `fit`.
        """
        if self.config.training.gradient_checkpointing:
            checkpoint_gradients(self.bench.base.backbone)
        training, name = self.config.training, _name(self.tasks)
        arguments = self._arguments(validate is not None)
        drawn = training.steps * training.batch_size * training.gradient_accumulation * arguments.world_size
        rows, collate, combine = ordered(drawn)
        where = f"task {name}, mode {self.config.mode}"
        watch = Watch(where, validate, higher_is_better, training.early_stopping, self.bench.on_step)
        model = combine(models)
        if places := places_of(model):  # the trainer moves no model that has this attribute
            cast(Any, model).hf_device_map = places
        ingredients = ingredients_of(model, training, self.seed)
        trainer = QuietTrainer(model, arguments, rows, collate, watch, ingredients)
        for tracker in self.callbacks:
            trainer.add_callback(tracker)
        _train(trainer, self.folder, self.config)
        record = _record(trainer, self.started)
        self.bench.records.update({task.name: {**record, "cut": cuts(task)} for task in self.tasks})

    def changes(self) -> dict[str, Tensor]:
        """Return parameter -> its change in float32; tied parameters once, without unchanged ones."""
        named = self.bench.base.backbone.named_parameters()
        changes = {name: (p.detach().cpu() - self.pristine[name]).float() for name, p in named}
        return {name: change for name, change in changes.items() if bool(change.any())}

    def _arguments(self, validated: bool) -> TrainingArguments:
        settings = self.config.training
        every = {"eval_strategy": "steps", "eval_steps": settings.evaluate_every}
        keep = {"save_strategy": "steps", "save_steps": settings.checkpoint_every}
        return training_arguments(
            settings,
            self.seed,
            self.folder,
            self.config.learning_rate,
            self.bench.base.machine,
            run_name=f"{self.config.mode}/{_name(self.tasks)}",
            **(every if settings.evaluate_every and validated else {"eval_strategy": "no"}),
            **(keep if self.bench.scratch is not None and settings.checkpoint_every else {"save_strategy": "no"}),
        )


def _one_readout_a_task(model_of: ModelOf) -> tuple[ModelOf, dict[str, Readout]]:
    """Return ``model_of`` with one readout per task, since a readout may have parameters, and task -> readout."""
    readouts: dict[str, Readout] = {}

    def made(task: Task) -> TaskModel:
        model = model_of(task)
        model.readout = readouts.setdefault(task.name, model.readout)
        return model

    return made, readouts


def _name(tasks: Sequence[Task]) -> str:
    return "+".join(task.name for task in tasks)


def _validation(model_of: ModelOf, tasks: Sequence[Task]) -> Callable[[], tuple[float, float]]:
    """Return a function for score and mean loss on the validation splits, in float32, with unwrapped task models.

    If the tasks' metrics have no common scale, so that the mean of their scores says nothing, the loss is the score.
    """
    models = [model_of(task) for task in tasks]
    comparable = _direction(tasks) != 0

    def validate() -> tuple[float, float]:
        measured = []
        for task, model in zip(tasks, models, strict=True):
            device = next(model.backbone.parameters()).device
            split = task.splits["validation"]
            predictions = predict(model.to(device), split, batch_size=64)
            loss = float(torch.as_tensor(predictions.losses).mean())
            measured.append((score(task.metric, predictions.values, split.targets), loss))
        scores, losses = zip(*measured, strict=True)
        loss = sum(losses) / len(losses)
        return (sum(scores) / len(scores) if comparable else loss), loss

    return validate


def _direction(tasks: Sequence[Task]) -> int:
    return direction(task.metric for task in tasks)


def _train(trainer: QuietTrainer, folder: Path, config: FinetuneConfig) -> None:
    """Train, from the last checkpoint in ``folder`` if there is one, and put the best weights back if they are kept."""
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    averaged, done = trainer.load_mean(), trainer.validations()
    if trainer.watch.validate is not None and (averaged or not done or done[-1]["step"] != trainer.state.global_step):
        trainer.evaluate()
    if trainer.watch.best:
        trainer.load_best()
    if bad := [name for name, p in trainer.trained().items() if not bool(torch.isfinite(p).all())]:
        fix = f"lower training.learning_rate (now {config.learning_rate:g})"
        raise ModelError("a trained weight is not finite", got=bad[0], where=trainer.watch.name, fix=fix)


def _record(trainer: QuietTrainer, started: float) -> dict[str, Any]:
    """Return the content of ``training.json``."""
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    parameters = list(trainer.parameters())
    return {
        "steps": [entry["step"] for entry in losses],
        "loss": [entry["loss"] for entry in losses],
        "validation": trainer.validations(),
        "seconds": round(time.monotonic() - started, 3),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "total": sum(entries(p) for p in parameters),
    }


@contextlib.contextmanager
def _checkpoints(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Iterator[Path]:
    """Yield the folder of this training's checkpoints; its name is a digest of all inputs of the training.

    The caller that set ``bench.scratch`` removes it, once the adapter is on disk.
    """
    if bench.scratch is None:
        with tempfile.TemporaryDirectory(prefix="tangora-") as temporary:
            yield Path(temporary)
        return
    versions = [version(name) for name in ("torch", "transformers", "peft", "accelerate")]
    prints, metrics = {task.name: task.fingerprint for task in tasks}, [task.metric for task in tasks]
    key = stage_key(config, bench.base.identity, prints, bench.base.config.family, metrics)
    identity = digest([key, versions, os.environ.get("WORLD_SIZE")])
    folder = bench.scratch / identity[:16]
    with writing(bench.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    yield folder
