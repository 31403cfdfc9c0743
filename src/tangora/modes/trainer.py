"""A restricted `transformers.Trainer`: silent, saves only what is trained, and gives the same result after a kill.

The order of the rows is fixed beforehand by seed and task. So the trainer sees one epoch of full batches, and a resumed
run only has to skip to its position. Checkpoints contain the trained weights, the optimizer, the schedule and the
random states. ``trainer_state.json`` is written last; a checkpoint without it is incomplete.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tangora.adapters.initial import seed_of
from tangora.config.settings import TrainingSettings
from tangora.errors import ModelError
from tangora.modes.averaging import Mean
from tangora.modes.ingredients import Ingredients
from tangora.modes.rates import with_own_rates
from tangora.support.files import read_safetensors, writing
from tangora.support.json_text import parse_json
from tangora.support.machine import Machine

__all__ = [
    "QuietTrainer",
    "Rows",
    "Watch",
    "forget_checkpoints",
    "last_checkpoint",
    "quiet",
    "training_arguments",
    "training_seed",
]

WEIGHTS, BEST, MEAN = "trained.safetensors", "best.safetensors", "mean.safetensors"
STATE = "trainer_state.json"  # as the trainer names it


class Rows(Dataset[Any]):
    """Shuffled passes over the rows of a data set, one after another, cut to ``length``."""

    def __init__(self, rows: Dataset[Any], length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = len(rows)  # type: ignore[arg-type]
        passes = [torch.randperm(count, generator=generator) for _ in range(math.ceil(length / count))]
        self.rows, self.order = rows, torch.cat(passes)[:length].tolist() if passes else []

    def __len__(self) -> int:
        """Return the number of rows that the training sees."""
        return len(self.order)

    def __getitem__(self, position: int) -> Any:
        """Return the row at a position of the order."""
        return self.rows[self.order[position]]


@dataclass
class Watch:
    """Validation and callbacks during a training.

    Attributes:
        name: task and mode, for errors.
        validate: -> (score, loss) on the validation split; None if there is none.
        higher_is_better: whether a higher score is better.
        patience: validations without progress before stopping; None to never stop, and keep the last weights.
        on_step: called after each step with (step, total, loss).
    """

    name: str
    validate: Callable[[], tuple[float, float]] | None = None
    higher_is_better: bool = True
    patience: int | None = None
    on_step: Callable[[int, int, float], None] | None = None
    best: dict[str, Tensor] = field(default_factory=dict)


class _AfterStep(TrainerCallback):
    """Adds the weights to the trainer's mean after each step, before a checkpoint of the step is written."""

    def __init__(self, trainer: QuietTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self.trainer.mean.add(state.global_step, self.trainer.trained())


class QuietTrainer(Trainer):
    """Trains the parameters that require gradients; saves and loads only these."""

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        rows: Dataset[Any],
        collate: Callable[[Any], Any],
        watch: Watch,
        ingredients: Ingredients | None = None,
    ) -> None:
        super().__init__(model, arguments, data_collator=collate, train_dataset=rows, eval_dataset=rows)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the rows, divided by the accumulation steps
        self.watch = watch
        self.ingredients = ingredients or Ingredients(TrainingSettings())
        self.mean = Mean.of_last(self.ingredients.settings.averaged, arguments.max_steps)
        self.add_callback(_AfterStep(self))

    def parameters(self) -> list[nn.Parameter]:
        """Return every parameter of the model, tied ones once."""
        return list(cast(nn.Module, self.model).parameters())

    def trained(self) -> dict[str, Tensor]:
        """Return name -> trained parameter, tied ones once."""
        return {name: p.detach() for name, p in cast(nn.Module, self.model).named_parameters() if p.requires_grad}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the task model's own loss, with the penalty of the settings."""
        outputs = model(**inputs)
        loss = outputs["loss"] + self.ingredients.penalty()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
        """Add the gradients of some rows, of the layers and at the point that the settings ask for."""

        def loss() -> Tensor:
            model.train()
            with self.compute_loss_context_manager():
                return cast(Tensor, self.compute_loss(model, self._prepare_inputs(inputs)))

        parameters = [p for p in self.parameters() if p.requires_grad]
        with self.ingredients.step(self.state.global_step, parameters, loss):
            return super().training_step(model, inputs, *rest, **more)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer, in which parameters with a learning rate of their own have a group each."""
        return with_own_rates(super().create_optimizer(model))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Record and report the step; refuse a loss that is not finite before a checkpoint is written."""
        step, loss = self.state.global_step, logs.get("loss")
        if loss is not None and not math.isfinite(loss):
            where = f"{self.watch.name}, step {step}"
            fix = f"lower training.learning_rate (now {self.args.learning_rate:g})"
            raise ModelError("the training loss is not finite", got=loss, where=where, fix=fix)
        super().log(logs, *args, **kwargs)
        if loss is not None and self.watch.on_step is not None and self.is_world_process_zero():
            self.watch.on_step(step, self.state.max_steps, loss)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the validation split; with patience, keep the best weights and stop if it runs out."""
        assert self.watch.validate is not None
        score, loss = self._agreed(self.watch.validate())
        metrics = {"eval_score": score, "eval_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.watch.patience is not None:
            since = _since_best(self.validations(), self.watch.higher_is_better)
            if since == 0:
                self.watch.best = {name: p.to("cpu", copy=True) for name, p in self.trained().items()}
            if since >= self.watch.patience:
                self.control.should_training_stop = True
        return metrics

    def validations(self) -> list[dict[str, float]]:
        """Return step, loss and score of every validation so far."""
        entries = [entry for entry in self.state.log_history if "eval_score" in entry]
        return [{"step": e["step"], "loss": e["eval_loss"], "score": e["eval_score"]} for e in entries]

    @torch.no_grad()
    def load_mean(self) -> bool:
        """Put the mean of the weights in place, if the settings ask for it and a step was in it; return whether."""
        if not self.mean.count:
            return False
        _assign(self.trained(), self.mean.value())
        return True

    @torch.no_grad()
    def load_best(self) -> None:
        """Put the weights of the best validation back."""
        _assign(self.trained(), self.watch.best)

    def _agreed(self, values: tuple[float, float]) -> tuple[float, float]:
        """Return the main process's numbers, so that every process takes the same decision."""
        if self.args.world_size == 1:
            return values
        shared = list(values)
        broadcast_object_list(shared)
        return shared[0], shared[1]

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(cast(Sized, self.train_dataset))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.control.should_training_stop:  # after the last step, the adapter itself is written
            with writing(Path(str(self.args.output_dir))):
                super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.contiguous() for name, p in self.trained().items()}, folder / WEIGHTS)
        if self.watch.best:
            save_file(self.watch.best, folder / BEST)
        if self.mean.count:
            save_file({**self.mean.sums, Mean.COUNT: torch.tensor(self.mean.count)}, folder / MEAN)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # trainer_state.json, written next, marks the checkpoint as complete

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        _assign(self.trained(), read_safetensors(folder / WEIGHTS))
        if (folder / BEST).exists():
            self.watch.best = read_safetensors(folder / BEST)
        if (folder / MEAN).exists():
            self.mean.sums = read_safetensors(folder / MEAN)
            self.mean.count = int(self.mean.sums.pop(Mean.COUNT))


def _assign(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


def _since_best(validations: list[dict[str, float]], higher_is_better: bool) -> int:
    """Return the number of validations after the best one: best score, then lowest loss, then earliest."""
    sign = 1 if higher_is_better else -1
    keys = [(sign * v["score"], -v["loss"]) for v in validations]
    return len(keys) - 1 - keys.index(max(keys))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest complete checkpoint in ``folder``."""
    checkpoints = []
    for state in folder.glob(f"checkpoint-*/{STATE}"):
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            checkpoints.append((int(parse_json(state.read_text(encoding="utf-8"))["global_step"]), state.parent))
    return max(checkpoints)[1] if checkpoints else None


def forget_checkpoints(scratch: Path) -> None:
    """Make all checkpoints of all trainings in a folder incomplete, before they are removed.

    A kill may end the removal anywhere. What it leaves of a checkpoint must not count as one.
    """
    for state in scratch.glob(f"**/checkpoint-*/{STATE}"):
        state.unlink(missing_ok=True)


def training_arguments(
    config: Any, seed: int, folder: Path, learning_rate: float, machine: Machine, **more: Any
) -> TrainingArguments:
    """Translate `TrainingSettings` to the trainer's arguments; ``more`` overrides.

    Under a launcher, every process has its own device, by its rank; else the machine's device is used.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cuda = torch.cuda.is_available() if launched else machine.torch_device.type == "cuda"
    if cuda and not launched and machine.torch_device.index is not None:
        torch.cuda.set_device(machine.torch_device)  # the trainer takes the current one
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=round(config.warmup * config.steps),
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        fp16=cuda and machine.dtype == "float16",  # with a scaled loss, since small gradients would vanish
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=cuda,
        use_cpu=not cuda,
        ddp_backend="gloo" if launched and not cuda else None,
        ddp_find_unused_parameters=True,  # a target may be in a part that the task does not use (a pooler)
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_total_limit=1,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        **more,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several devices are used through a launcher, never through DataParallel
    return arguments


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Silence output and warnings and seed the global random states; restore all of it at the end."""
    states = random.getstate(), np.random.get_state()
    verbosity = transformers.logging.get_verbosity()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        accelerate = logging.getLogger("accelerate")
        level = accelerate.level
        accelerate.setLevel(logging.ERROR)
        transformers.set_seed(seed)
        frozen = gc.get_freeze_count()
        gc.freeze()  # the trainer first collects garbage: seconds over everything imported, and nothing to free
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            transformers.logging.set_verbosity(verbosity)
            accelerate.setLevel(level)
            if not frozen:
                gc.unfreeze()


def training_seed(seed: int, task: str) -> int:
    """Return the 32-bit seed of everything random in one training."""
    return seed_of("training", seed, task) % 2**32
