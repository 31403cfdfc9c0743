"""Zero-shot classification: predict the class with the embedded name nearest to the features of a row.

With unit features v and unit class embeddings h: ``logits_c = scale * <v, h_c>``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from tangora.errors import ModelError
from tangora.support.machine import Machine
from tangora.tasks.base import Base
from tangora.tasks.readouts import ClassReadout
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.config.tasks import TaskConfig
    from tangora.tasks.values import Batch

__all__ = [
    "TextEncoder",
    "ZeroShotBase",
    "ZeroShotReadout",
    "ZeroShotTask",
    "class_embeddings",
    "decides",
    "finish",
    "followed",
    "of_base",
    "of_task",
]

_EMBEDDED_AT_ONCE = 256


@dataclass(frozen=True)
class TextEncoder:
    """Turns class names in prompts into features.

    Attributes:
        embed: maps texts to features of shape [texts, dim], not normalized, without gradients, on the CPU.
        fingerprint: sha-256 of everything that affects the features.
        tower: the model that embeds, if it is not the backbone.
    """

    embed: Callable[[Sequence[str]], Float[Tensor, "texts dim"]]
    fingerprint: str
    tower: nn.Module | None = None


@dataclass(kw_only=True, repr=False)
class ZeroShotBase(Base):
    """A base that can embed class names.

    Attributes:
        text: the encoder of class names.
        scale: logits = scale * cosine.
    """

    text: TextEncoder
    scale: float

    def place(self, machine: Machine) -> None:
        """Move the backbone, and the model that embeds class names."""
        super().place(machine)
        if self.text.tower is not None:
            self.text.tower.to(machine.torch_device)


@dataclass(frozen=True, kw_only=True, repr=False)
class ZeroShotTask(Task):
    """A task with a vector for every class.

    Attributes:
        head: a unit vector per class.
        scale: logits = scale * cosine.
    """

    head: Float[Tensor, "classes dim"]
    scale: float


class ZeroShotReadout(ClassReadout):
    """``logits_c = scale * <v, h_c>`` of unit features v.

    Args:
        task: the task, with class embeddings and scale.
        features: maps a backbone and a batch to a vector per row, not normalized.
        features_key: what the features depend on; see `tangora.tasks.contract.Readout`.
    """

    head: Tensor

    def __init__(
        self,
        task: ZeroShotTask,
        features: Callable[[nn.Module, Batch], Float[Tensor, "batch dim"]],
        features_key: tuple[str, ...],
    ) -> None:
        super().__init__(len(task.head), features_key)
        self.scale = task.scale
        self._features = features
        self.register_buffer("head", task.head, persistent=False)

    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Float[Tensor, "batch dim"]:
        """Return a vector per row, not normalized."""
        return self._features(backbone, inputs)

    def logits(self, features: Float[Tensor, "batch dim"], /) -> Float[Tensor, "batch classes"]:
        """Return the scaled cosines with the class embeddings."""
        return self.scale * normalize(features.float(), dim=-1) @ self.head.T


def of_base(base: Base) -> ZeroShotBase:
    """Return the base as a `ZeroShotBase`.

    Raises:
        ModelError: it was loaded by a family that does not embed class names.
    """
    if not isinstance(base, ZeroShotBase):
        fix = "load the base with the task's family"
        raise ModelError("the base does not embed class names", got=base.config.family, where="base.family", fix=fix)
    return base


def of_task(task: Task) -> ZeroShotTask:
    """Return the task as a `ZeroShotTask`.

    Raises:
        ModelError: it was made for a base that does not embed class names.
    """
    if not isinstance(task, ZeroShotTask):
        fix = "load the task for this base, with load_task"
        raise ModelError("the task has no class embeddings", got=task.family, where=f"task {task.name}", fix=fix)
    return task


def decides(config: TaskConfig, base: Base) -> Mapping[str, Any]:
    """Return what affects answers: the encoder of class names, their templates, the scale."""
    base = of_base(base)
    return {"scale": base.scale, "head": [base.text.fingerprint, config.templates], "generation": None}


def finish(task: Task, config: TaskConfig, base: Base) -> ZeroShotTask:
    """Return the task with its class embeddings."""
    base = of_base(base)
    head = class_embeddings(base.text, task.labels, config.templates)
    return ZeroShotTask(**vars(task), head=head, scale=base.scale)


def followed(task: Task) -> ZeroShotTask:
    """Return the task with the unit features as its logits."""
    task = of_task(task)
    return replace(task, head=torch.eye(task.head.shape[1]), scale=1.0)


def class_embeddings(
    text: TextEncoder, labels: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes dim"]:
    """Return a unit vector per class: the mean of its normalized prompt embeddings, normalized.

    As in Radford et al. 2021 (CLIP), section 3.1.4.

    Args:
        text: the pretrained text encoder.
        labels: class names.
        templates: prompts with ``{}`` for the class name.
    """
    prompts = [template.replace("{}", label) for label in labels for template in templates]
    chunks = [prompts[i : i + _EMBEDDED_AT_ONCE] for i in range(0, len(prompts), _EMBEDDED_AT_ONCE)]
    embedded = normalize(torch.cat([text.embed(chunk) for chunk in chunks]), dim=-1)
    return normalize(embedded.view(len(labels), len(templates), -1).mean(1), dim=-1)
