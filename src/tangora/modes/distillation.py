"""From a tangent adapter to an ordinary one: a LoRA student whose features follow those of the expansion.

A tangent teacher costs two forward passes to serve. The student is trained on unlabelled rows to give, along the whole
path from the base to itself, the features that the teacher has there (arXiv:2605.18993):

    min over φ of E over x, a ~ U(½, 1) of  1 − cos( v(x; θ₀ + a·ΔW(φ)),  v(x; θ₀) + a·J(x) τ )

v are the normalized features, from which every task's logits are a linear function. τ is the teacher: a fused adapter,
or for each task's rows the expert of that task. Rows of all tasks are mixed. The teachers' features are computed once,
as `Columns` of a task whose logits are the features.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tangora.adapters.heads import HeadRecord
from tangora.adapters.metadata import DistilledInfo
from tangora.errors import ModelError
from tangora.modes.contract import Bench, OnStep, mode_of, reporting
from tangora.modes.finetuning import train_to
from tangora.progress import Progress, shown
from tangora.support.files import digest, refuse_output
from tangora.support.seams import FAMILIES
from tangora.tangent import make_columns
from tangora.tasks.model import TaskModel
from tangora.tasks.values import Split, Task

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.adapters.adapter import Adapter
    from tangora.config.recipe import FinetuneConfig
    from tangora.tasks import Base

__all__ = ["StudentModel", "distill"]

_Lesson: TypeAlias = "tuple[Sequence[Task], Adapter]"

SHORTEST = 0.5  # smallest fraction of the path from the base to the student at which a step is taken


def distill(
    base: Base,
    tasks: Sequence[Task],
    teacher: Adapter | Sequence[Adapter],
    config: FinetuneConfig,
    *,
    rows: int = 1000,
    out: Path | None = None,
    scratch: Path | None = None,
    on_step: OnStep | None = None,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> Adapter:
    """Train a LoRA or L-LoRA student whose features follow a tangent teacher's; no labels are used.

    Choose it to serve a fused tangent adapter at the cost of plain LoRA. Score both (`tangora evaluate`) to measure
    what is lost. With the experts themselves as teachers it is an alternative to fusing: the tasks interfere only as
    far as one student cannot fit them all, but every set of tasks needs a training of its own.

    Args:
        base: the model of the teacher; as before afterwards.
        tasks: their train rows are used, mixed.
        teacher: an adapter with ``linearize: model``, fused or not; or several, one expert for each task.
        config: the student's mode: one that trains an ordinary network with LoRA layers, such as ``lora``, ``l-lora``.
        rows: the largest number of rows per task.
        out, scratch, on_step, overwrite: as for `tangora.finetune`.
        progress: shows passes and steps; by default in a terminal or a notebook. False is silent.

    Raises:
        ModelError: a teacher is not a tangent adapter, several are not one of each task, the student is a tangent
            adapter, or a task has no features to follow.
        OutputError: as `tangora.finetune`.

    >>> import tangora
    >>> recipe = tangora.load_recipe("recipe.yaml")
    >>> base = tangora.load_base(recipe.base)
    >>> tasks = [tangora.load_task(config, base) for config in recipe.tasks]
    >>> teacher = tangora.load("run/fused/tangent/average")
    >>> student = tangora.distill(base, tasks, teacher, recipe.finetune_config("lora"), rows=8)
    >>> student.metadata.distilled.rows
    16
    """
    lessons = _lessons(tasks, teacher)
    _check(tasks, [adapter for _, adapter in lessons], config)
    if out is not None:
        refuse_output(out, overwrite)
    mixed = _mixed(tasks, [adapter for _, adapter in lessons], rows, config.seed)
    prints = {task.name: adapter.fingerprint for group, adapter in lessons for task in group}
    followed = prints if isinstance(teacher, Sequence) else teacher.fingerprint
    names, count = [task.name for task in tasks], len(mixed.splits["train"])
    distilled = DistilledInfo(teacher=followed, tasks=names, split="train", rows=count)
    with shown(progress) as listener:
        origin, moved = _features(base, lessons, rows, config.seed, listener)
        student = partial(StudentModel, base.backbone, base=base, origin=origin, moved=moved)
        bench, folders = (
            Bench(base, scratch, None, reporting(listener, on_step, digits=4), student),
            {mixed.name: out} if out else {},
        )
        _take_heads(bench, lessons)
        listener.begin(f"{config.mode} · distilled", config.training.steps)
        made = train_to(bench, [mixed], config, folders, overwrite=overwrite, extra={"distilled": distilled})
        listener.end()
    return made[mixed.name]


def _take_heads(bench: Bench, lessons: Sequence[_Lesson]) -> None:
    """Give the student its teachers' heads, which answer by features, and their records, or those of the tasks."""
    for tasks, adapter in lessons:
        bench.heads.update({name: dict(head) for name, head in adapter.heads.items()})
        bench.head_records.update({task.name: HeadRecord(**task.record) for task in tasks if task.record})
        bench.head_records.update(adapter.records)


class StudentModel(TaskModel):
    """A task model trained towards the teacher's features; a row's label is its index among them."""

    origin: Tensor
    moved: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        task: Task,
        base: Base,
        origin: Float[Tensor, "rows features"],
        moved: Float[Tensor, "rows features"],
    ) -> None:
        super().__init__(backbone, task, base)
        device = next(backbone.parameters()).device
        self.register_buffer("origin", origin.to(device), persistent=False)
        self.register_buffer("moved", moved.to(device), persistent=False)

    def forward(self, labels: Int[Tensor, " batch"] | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Return features as ``logits``; the mean ``loss`` is one minus their cosine to the teacher's."""
        share = float(torch.empty(()).uniform_(SHORTEST, 1.0)) if self.training else 1.0
        with _scaled(self.backbone, share):
            features = self.logits(inputs)
        if labels is None:
            return {"logits": features}
        target = normalize(self.origin[labels] + share * self.moved[labels], dim=-1)
        return {"loss": 1 - (features * target).sum(-1).mean(), "logits": features}


@contextmanager
def _scaled(model: nn.Module, share: float) -> Iterator[None]:
    """Scale every LoRA update of the model by ``share`` for the length of the block."""
    scalings: list[Any] = [getattr(module, "scaling", None) for module in model.modules()]
    layers: list[dict[str, float]] = [scaling for scaling in scalings if isinstance(scaling, dict)]
    before = [dict(scaling) for scaling in layers]
    try:
        for scaling in layers:
            scaling.update({name: share * value for name, value in scaling.items()})
        yield
    finally:
        for scaling, values in zip(layers, before, strict=True):
            scaling.update(values)


def _lessons(tasks: Sequence[Task], teacher: Adapter | Sequence[Adapter]) -> list[_Lesson]:
    """Return pairs of tasks and the teacher that their rows follow, in the order of the tasks."""
    if not isinstance(teacher, Sequence):
        return [(tasks, teacher)]
    by_task: dict[str | None, Adapter] = {adapter.metadata.task: adapter for adapter in teacher}
    names = [task.name for task in tasks]
    if len(by_task) < len(teacher) or set(by_task) != set(names):
        fix = "give one expert of every task, or a fused adapter alone"
        got = ", ".join(str(adapter.metadata.task) for adapter in teacher)
        raise ModelError(f"several teachers must be those of {', '.join(names)}", got=got, where="teacher", fix=fix)
    return [([task], by_task[task.name]) for task in tasks]


def _features(
    base: Base, lessons: Sequence[_Lesson], rows: int, seed: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Return the features of all tasks' rows, in order: those at φ₀, and what the teacher adds to them."""
    parts = []
    progress.begin("features of the teachers", len(lessons))
    for tasks, teacher in lessons:
        mixed = _mixed(tasks, [teacher], rows, seed)
        parts.append(make_columns(base, mixed, "train", {"teacher": teacher}))
        progress.advance(detail="+".join(task.name for task in tasks))
    progress.end()
    return torch.cat([part.origin for part in parts]), torch.cat([part.columns[0] for part in parts])


def _check(tasks: Sequence[Task], teachers: Sequence[Adapter], config: FinetuneConfig) -> None:
    for teacher in teachers:
        if not mode_of(teacher).linear_in_coefficients:
            fix = "give an adapter of mode tangent or full-tangent; others are served at the cost of LoRA already"
            raise ModelError("the teacher is not a tangent adapter", got=teacher.metadata.train, fix=fix)
    if not mode_of(config).can_be_student:
        fix = "choose a mode with train: lora or l-lora"
        raise ModelError("a student is a LoRA or L-LoRA adapter", got=config.mode, where="--mode", fix=fix)
    if without := [task.name for task in tasks if FAMILIES.get(task.family).followed(task) is None]:
        fix = "distillation follows features, and logits must be linear in them: choose another family"
        raise ModelError("this task has no features to follow", got=without[0], where="tasks", fix=fix)


def _mixed(tasks: Sequence[Task], teachers: Sequence[Adapter], rows: int, seed: int) -> Task:
    """Return train rows of all tasks as one task that has the features as logits and row numbers as labels."""
    inputs: dict[str, list[Any]] = {}
    for task in tasks:
        split = task.splits["train"]
        chosen = random.Random(f"{seed}:{task.name}").sample(range(len(split)), min(rows, len(split)))
        for name, values in split.inputs.items():
            inputs.setdefault(name, []).extend(values[i] for i in chosen)
    first = tasks[0].splits["train"].inputs
    stacked = {name: torch.stack(v) if isinstance(first[name], Tensor) else v for name, v in inputs.items()}
    count = len(next(iter(inputs.values())))
    train = Split(stacked, list(range(count)))
    fingerprint = digest(["distill-2", train.fingerprint, [teacher.fingerprint for teacher in teachers]])
    followed: Task = FAMILIES.get(tasks[0].family).followed(tasks[0])
    own: dict[str, Any] = {"name": "distilled", "metric": "accuracy", "more_metrics": (), "labels": [], "record": {}}
    return replace(followed, **own, splits={"train": train}, fingerprint=fingerprint)
