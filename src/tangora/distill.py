"""From a tangent adapter to an ordinary one: a LoRA student whose features follow those of the expansion.

A tangent teacher costs two forward passes to serve. The student is trained on unlabelled rows to give, along the whole
path from the base to itself, the features that the teacher has there (arXiv:2605.18993):

    min over φ of E over x, a ~ U(½, 1) of  1 − cos( v(x; θ₀ + a·ΔW(φ)),  v(x; θ₀) + a·J(x) τ )

with v the normalized features of which every task's logits are a linear function, and τ the (fused) teacher. Rows of
all tasks are mixed; the teacher's features are computed once, as `Columns` of a task whose head is the identity.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tangora._io import digest
from tangora.errors import ModelError
from tangora.metadata import DistilledInfo
from tangora.tasks.model import TaskModel
from tangora.tasks.values import Split, Task

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.adapter import Adapter
    from tangora.finetune import OnStep
    from tangora.recipe import FinetuneConfig
    from tangora.tangent import Columns
    from tangora.tasks import Base

__all__ = ["StudentModel", "Teacher", "distill"]

SHORTEST = 0.5  # of the path from the base to the student, on which a step may lie


def distill(
    base: Base,
    tasks: Sequence[Task],
    teacher: Adapter,
    config: FinetuneConfig,
    *,
    rows: int = 1000,
    out: Path | None = None,
    scratch: Path | None = None,
    on_step: OnStep | None = None,
    overwrite: bool = False,
) -> Adapter:
    """Train a LoRA or L-LoRA student whose features follow a tangent teacher's; no labels are used.

    Choose it to serve a fused tangent adapter at the cost of plain LoRA. What the student loses of the teacher is
    measured by scoring both (`tangora evaluate`).

    Args:
        base: the model of the teacher; as before afterwards.
        tasks: whose train rows are looked at, mixed.
        teacher: an adapter with ``linearize: model``, fused or not.
        config: how the student is made: ``linearize: none`` or ``module``.
        rows: most rows of a task.
        out, scratch, on_step, overwrite: as for `tangora.finetune`.

    Raises:
        ModelError: the teacher is not a tangent adapter, the student is one, or the model answers in words.
        OutputError: as `tangora.finetune`.
    """
    from tangora._io import refuse_existing
    from tangora.finetune import finetune
    from tangora.tangent import make_columns

    _check(tasks, teacher, config)
    if out is not None:
        refuse_existing(out, overwrite)
    mixed = _mixed(tasks, teacher, rows, config.seed)
    names = [task.name for task in tasks]
    about = DistilledInfo(teacher=teacher.fingerprint, tasks=names, split="train", rows=len(mixed.splits["train"]))
    lesson = Teacher(make_columns(base, mixed, "train", {"teacher": teacher}), about)
    return finetune(base, mixed, config, teacher=lesson, out=out, scratch=scratch, on_step=on_step, overwrite=overwrite)


@dataclass(frozen=True)
class Teacher:
    """What a student is trained on: features at φ₀ and how the teacher moves them, row by row."""

    columns: Columns
    about: DistilledInfo

    def student(self, base: Base, task: Task) -> Callable[[], TaskModel]:
        """Makes the model that is trained."""
        return lambda: StudentModel(base.backbone, task, base, self.columns)


class StudentModel(TaskModel):
    """Answers with its distance from the teacher's features; a row's label is its place among them."""

    origin: Tensor
    moved: Tensor

    def __init__(self, backbone: nn.Module, task: Task, base: Base, columns: Columns) -> None:
        super().__init__(backbone, task, base)
        device = next(backbone.parameters()).device
        self.register_buffer("origin", columns.origin.to(device), persistent=False)
        self.register_buffer("moved", columns.columns[0].to(device), persistent=False)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        labels: Int[Tensor, "batch"] | None = None,
    ) -> dict[str, Tensor]:
        """``logits`` are features; the mean ``loss`` is one minus their cosine to the teacher's."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        share = float(torch.empty(()).uniform_(SHORTEST, 1.0)) if self.training else 1.0
        with _scaled(self.backbone, share):
            features = self.logits({name: value for name, value in given.items() if value is not None})
        if labels is None:
            return {"logits": features}
        target = normalize(self.origin[labels] + share * self.moved[labels], dim=-1)
        return {"loss": 1 - (features * target).sum(-1).mean(), "logits": features}


@contextmanager
def _scaled(model: nn.Module, share: float) -> Iterator[None]:
    """Every LoRA update of the model at a share of its size."""
    held: list[Any] = [getattr(module, "scaling", None) for module in model.modules()]
    layers: list[dict[str, float]] = [scaling for scaling in held if isinstance(scaling, dict)]
    before = [dict(scaling) for scaling in layers]
    try:
        for scaling in layers:
            scaling.update({name: share * value for name, value in scaling.items()})
        yield
    finally:
        for scaling, values in zip(layers, before, strict=True):
            scaling.update(values)


def _check(tasks: Sequence[Task], teacher: Adapter, config: FinetuneConfig) -> None:
    if teacher.metadata.linearize != "model":
        fix = "give an adapter with linearize: model; others are served at the cost of LoRA already"
        raise ModelError("the teacher is not a tangent adapter", got=teacher.metadata.linearize, fix=fix)
    if config.train == "full" or config.linearize == "model":
        fix = "choose a mode with linearize: none or module"
        raise ModelError("a student is a LoRA or L-LoRA adapter", got=config.mode, where="--mode", fix=fix)
    if worded := [task.name for task in tasks if task.head is None]:
        fix = "distillation follows features, which zero-shot families have"
        raise ModelError("this task is answered in words", got=worded[0], where="tasks", fix=fix)


def _mixed(tasks: Sequence[Task], teacher: Adapter, rows: int, seed: int) -> Task:
    """Train rows of all tasks as one task, whose head is the identity and whose label is the row."""
    inputs: dict[str, list[Any]] = {}
    for task in tasks:
        split = task.splits["train"]
        chosen = random.Random(f"{seed}:{task.name}").sample(range(len(split)), min(rows, len(split)))
        for name, values in split.inputs.items():
            inputs.setdefault(name, []).extend(values[i] for i in chosen)
    stacked = {name: torch.stack(v) if name == "pixel_values" else v for name, v in inputs.items()}
    count = len(next(iter(inputs.values())))
    train = Split(stacked, list(range(count)))
    assert tasks[0].head is not None
    head = torch.eye(tasks[0].head.shape[1])
    decides = digest(["distill-1", train.fingerprint, teacher.fingerprint])
    return Task("distilled", tasks[0].family, "accuracy", [], {"train": train}, head, 1.0, decides)
