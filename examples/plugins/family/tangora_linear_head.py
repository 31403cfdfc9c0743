"""The family ``linear-head``: texts classified by an encoder and a linear layer that is trained with the adapter.

Choose it over ``text-zero-shot`` where class names say little (``label 3``), or where the encoder was not trained to
compare texts. A recipe names it as any other family::

    base: {family: linear-head, model: org/encoder, pooling: cls}
    tasks:
      - {name: spam, source: {csv: {train: train.csv, test: test.csv}}, text: message, label: kind}

With token features pooled to one vector and scaled to the length √dim, v: ``logits = W v + b``. W and b start at zero,
and travel with the adapter as ``heads/<task>.safetensors``; a fused adapter holds those of all its tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from tangora.config.tasks import BaseSettings, TaskSettings
from tangora.tasks.base import Base
from tangora.tasks.batches import Collator, collator
from tangora.tasks.contract import AnswerForm, Targets
from tangora.tasks.labels import class_targets
from tangora.tasks.readouts import ClassReadout
from tangora.tasks.sources import Table
from tangora.tasks.texts import encoder, pooled, texts_of, tokenize
from tangora.tasks.values import Batch, Task


class EncoderSettings(BaseSettings):
    """The encoder."""

    pooling: Literal["mean", "cls"] = Field(default="mean", description="token features to one vector")
    max_length: int = Field(default=128, ge=1, description="tokens kept of a text")


class TextSettings(TaskSettings):
    """One task."""

    text: str = Field(default="text", description="text column")


@dataclass(frozen=True)
class FollowedTask(Task):
    """The task whose logits are the unit features: what a student is trained to follow."""


class Pooled(ClassReadout):
    """Features of an encoder, pooled to one vector."""

    def __init__(self, width: int, pooling: str) -> None:
        super().__init__(width, ("linear-head", pooling))
        self.pooling = pooling

    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Tensor:
        """Return token features, pooled."""
        return pooled(backbone, inputs, self.pooling)

    def logits(self, features: Tensor, /) -> Tensor:
        """Return unit features."""
        return normalize(features.float(), dim=-1)


class LinearHead(Pooled):
    """``W v + b`` of features v, scaled to the length √dim."""

    def __init__(self, classes: int, dim: int, pooling: str) -> None:
        super().__init__(classes, pooling)
        self.linear = nn.Linear(dim, classes)
        self.scale = math.sqrt(dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def logits(self, features: Tensor, /) -> Tensor:
        """Return the head's logits."""
        logits: Tensor = self.linear(self.scale * super().logits(features))
        return logits


class LinearHeadFamily:
    """See the module."""

    name = "linear-head"
    base_settings = EncoderSettings
    task_settings = TextSettings
    unused = ("pooler",)

    def form(self, config: TextSettings, /) -> AnswerForm:
        """Return classes."""
        return AnswerForm("classes", "classes")

    def load(self, config: EncoderSettings, /) -> Base:
        """Return encoder and tokenizer."""
        return Base(config, *encoder(config, self.unused))

    def targets(self, tables: Mapping[str, Table], config: TextSettings, /) -> Targets:
        """Return class numbers."""
        return class_targets(tables, config)

    def encode(
        self, table: Table, targets: Sequence[Any], config: TextSettings, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return token ids of the text column."""
        texts = texts_of(table, config.text, "text")
        return {"input_ids": tokenize(base.processor, texts, _settings(base).max_length, table.place)}

    def decides(self, config: TextSettings, base: Base, /) -> Mapping[str, Any]:
        """Return the kind of head and the pooling."""
        return {"head": "linear", "pooling": _settings(base).pooling}

    def finish(self, task: Task, config: TextSettings, base: Base, /) -> Task:
        """Return the task as it is: the head is trained."""
        return task

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Describe what the head is applied to."""
        return {"features": "normalized, times the square root of their number"}

    def collate(self, base: Base, /) -> Collator:
        """Return what pads ids on the right."""
        return collator(base)

    def readout(self, task: Task, base: Base, /) -> Pooled:
        """Return a head that is zero, or the features themselves."""
        encoder_config: Any = base.backbone.config
        dim, pooling = int(encoder_config.hidden_size), _settings(base).pooling
        if isinstance(task, FollowedTask):
            return Pooled(dim, pooling)
        return LinearHead(len(task.labels), dim, pooling)

    def followed(self, task: Task, /) -> Task:
        """Return the task of unit features."""
        return FollowedTask(**vars(task))

    def examples(self, table: Table, config: TextSettings, /) -> Iterator[str]:
        """Iterate over the text column."""
        return iter(table.column(config.text))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads an encoder."""
        return "AutoModel"


def _settings(base: Base) -> EncoderSettings:
    assert isinstance(base.config, EncoderSettings)
    return base.config


FAMILY = LinearHeadFamily()
