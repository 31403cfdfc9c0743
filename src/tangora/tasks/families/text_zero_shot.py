"""The family `text-zero-shot`: a sentence encoder predicts the class with the name nearest to a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.config.tasks import BaseConfig, TaskConfig
from tangora.tasks.contract import AnswerForm
from tangora.tasks.labels import class_targets

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.batches import Collator
    from tangora.tasks.contract import Targets
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task
    from tangora.tasks.zero_shot import ZeroShotBase, ZeroShotReadout, ZeroShotTask

__all__ = ["FAMILY", "TextZeroShot"]


class TextZeroShot:
    """``logits_c = scale * cos(pooled token features, embedding of the class's name)``."""

    name = "text-zero-shot"
    base_settings = BaseConfig
    task_settings = TaskConfig
    unused = ("pooler",)
    names_by_backbone = True

    def form(self, config: TaskConfig, /) -> AnswerForm:
        """Return classes."""
        return AnswerForm("classes", "classes")

    def load(self, config: BaseConfig, /) -> ZeroShotBase:
        """Load the encoder, without the pooling head that many checkpoints lack."""
        from tangora.tasks import texts  # deferred: torch

        return texts.load(config, self.unused)

    def targets(self, tables: Mapping[str, Table], config: TaskConfig, /) -> Targets:
        """Return class numbers; every row has a text."""
        from tangora.tasks import texts  # deferred: torch

        found = class_targets(tables, config, prompted=True)
        for table in tables.values():  # before a model is loaded, which `encode` needs
            texts.texts_of(table, config.text, "text")
        return found

    def encode(
        self, table: Table, targets: Sequence[Any], config: TaskConfig, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return token ids of the text column."""
        from tangora.tasks import texts  # deferred: torch

        column = texts.texts_of(table, config.text, "text")
        return texts.tokenize_rows(base.processor, column, _settings(base).max_length, table.place)

    def decides(self, config: TaskConfig, base: Base, /) -> Mapping[str, Any]:
        """Return scale, templates, and the encoder that embeds class names."""
        from tangora.tasks import zero_shot  # deferred: torch

        return zero_shot.decides(config, base)

    def finish(self, task: Task, config: TaskConfig, base: Base, /) -> ZeroShotTask:
        """Embed the class names."""
        from tangora.tasks import zero_shot  # deferred: torch

        return zero_shot.finish(task, config, base)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return the scale."""
        from tangora.tasks.zero_shot import of_task  # deferred: torch

        return {"scale": of_task(task).scale}

    def collate(self, base: Base, /) -> Collator:
        """Return a collator that pads ids on the right."""
        from tangora.tasks.batches import collator  # deferred: torch

        return collator(base)

    def readout(self, task: Task, base: Base, /) -> ZeroShotReadout:
        """Return a readout by scaled cosines of pooled features with class embeddings."""
        from tangora.tasks.texts import pooled  # deferred: torch
        from tangora.tasks.zero_shot import ZeroShotReadout, of_task  # deferred: torch

        pooling = _settings(base).pooling
        return ZeroShotReadout(
            of_task(task), lambda backbone, batch: pooled(backbone, batch, pooling), (self.name, pooling)
        )

    def followed(self, task: Task, /) -> ZeroShotTask:
        """Return the task with the unit features as its logits."""
        from tangora.tasks import zero_shot  # deferred: torch

        return zero_shot.followed(task)

    def examples(self, table: Table, config: TaskConfig, /) -> Iterator[str]:
        """Iterate over the text column."""
        return iter(table.column(config.text))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads an encoder."""
        return "AutoModel"


def _settings(base: Base) -> BaseConfig:
    assert isinstance(base.config, BaseConfig)
    return base.config


FAMILY = TextZeroShot()
