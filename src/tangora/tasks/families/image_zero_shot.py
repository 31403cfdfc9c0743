"""The family `image-zero-shot`: a two-tower model (CLIP, SigLIP) predicts the class with the nearest name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.config.tasks import BaseConfig, TaskConfig
from tangora.tasks.contract import AnswerForm
from tangora.tasks.labels import class_targets

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.batches import Collator
    from tangora.tasks.contract import Targets
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task
    from tangora.tasks.zero_shot import ZeroShotBase, ZeroShotReadout, ZeroShotTask

__all__ = ["FAMILY", "ImageZeroShot"]


class ImageZeroShot:
    """``logits_c = scale * cos(image embedding, embedding of the class's name)``."""

    name = "image-zero-shot"
    base_settings = BaseConfig
    task_settings = TaskConfig
    unused: tuple[str, ...] = ()

    def form(self, config: TaskConfig, /) -> AnswerForm:
        """Return classes."""
        return AnswerForm("classes", "classes")

    def load(self, config: BaseConfig, /) -> ZeroShotBase:
        """Load the vision tower as backbone, and the text tower to embed class names."""
        from tangora.tasks import images  # deferred: torch

        return images.load(config)

    def targets(self, tables: Mapping[str, Table], config: TaskConfig, /) -> Targets:
        """Return class numbers."""
        return class_targets(tables, config, prompted=True)

    def encode(
        self, table: Table, targets: Sequence[Any], config: TaskConfig, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return pixels of the image column."""
        from tangora.tasks import images  # deferred: torch

        return images.encode(table, config, base)

    def decides(self, config: TaskConfig, base: Base, /) -> Mapping[str, Any]:
        """Return scale, templates, and the encoder that embeds class names."""
        from tangora.tasks import zero_shot  # deferred: torch

        return zero_shot.decides(config, base)

    def finish(self, task: Task, config: TaskConfig, base: Base, /) -> ZeroShotTask:
        """Embed the class names."""
        from tangora.tasks import zero_shot  # deferred: torch

        return zero_shot.finish(task, config, base)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return the scale, and how images are resized, cropped and normalized."""
        from tangora.tasks.zero_shot import of_task  # deferred: torch

        return {"scale": of_task(task).scale, "preprocessing": base.processor.to_dict()}

    def collate(self, base: Base, /) -> Collator:
        """Return a collator that stacks pixels."""
        from tangora.tasks.batches import collator  # deferred: torch

        return collator(base)

    def readout(self, task: Task, base: Base, /) -> ZeroShotReadout:
        """Return a readout by scaled cosines of image embeddings with class embeddings."""
        from tangora.tasks.images import features  # deferred: torch
        from tangora.tasks.zero_shot import ZeroShotReadout, of_task  # deferred: torch

        return ZeroShotReadout(of_task(task), features, (self.name,))

    def followed(self, task: Task, /) -> ZeroShotTask:
        """Return the task with the unit features as its logits."""
        from tangora.tasks import zero_shot  # deferred: torch

        return zero_shot.followed(task)

    def examples(self, table: Table, config: TaskConfig, /) -> Iterator[Image]:
        """Iterate over the image column."""
        from tangora.tasks.images import rgb  # deferred: torch

        return (rgb(row[config.image], table.place(i)) for i, row in enumerate(table.rows([config.image])))

    def auto_class(self, model: str, /) -> str:
        """Return the class of the vision tower alone."""
        return "SiglipVisionModel" if "siglip" in model.lower() else "CLIPVisionModelWithProjection"


FAMILY = ImageZeroShot()
