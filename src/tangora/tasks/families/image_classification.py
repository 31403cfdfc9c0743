"""The family `image-classification`: a vision model with a trained head for every task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.tasks.classification.forms import row_form
from tangora.tasks.classification.settings import ImageBaseSettings, ImageSettings
from tangora.tasks.classification.targets import row_targets
from tangora.tasks.contract import AnswerForm

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.batches import Collator
    from tangora.tasks.classification.base import ClassifierBase
    from tangora.tasks.classification.readouts import RowReadout
    from tangora.tasks.classification.tasks import HeadTask
    from tangora.tasks.contract import Targets
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task

__all__ = ["FAMILY", "ImageClassification"]


class ImageClassification:
    """Logits as those of transformers' ``AutoModelForImageClassification``; see `tangora.tasks.classification`."""

    name = "image-classification"
    base_settings = ImageBaseSettings
    task_settings = ImageSettings
    unused: tuple[str, ...] = ()

    def form(self, config: ImageSettings, /) -> AnswerForm:
        """Return classes, labels or numbers, by the problem."""
        return row_form(config)

    def load(self, config: ImageBaseSettings, /) -> ClassifierBase:
        """Load the backbone of the class, its image processor, and the checkpoint's head if it has one."""
        from tangora.tasks.classification import base  # deferred: torch
        from tangora.tasks.images import image_processor  # deferred: torch

        return base.classifier_base(config, image_processor(config))

    def targets(self, tables: Mapping[str, Table], config: ImageSettings, /) -> Targets:
        """Return class numbers, sorted numbers of labels, or numbers."""
        return row_targets(tables, config)

    def encode(
        self, table: Table, targets: Sequence[Any], config: ImageSettings, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return pixels of the image column, and the numbers of labels if rows have several."""
        from tangora.tasks import images  # deferred: torch
        from tangora.tasks.classification import inputs  # deferred: torch

        return {**images.encode(table, config, base), **inputs.label_tensors(targets, config)}

    def decides(self, config: ImageSettings, base: Base, /) -> Mapping[str, Any]:
        """Return layers and values of the head, what it reads, problem and threshold."""
        from tangora.tasks.classification.base import decides, of_base  # deferred: torch

        return {**decides(config, of_base(base)), "problem": config.problem, "threshold": config.threshold}

    def finish(self, task: Task, config: ImageSettings, base: Base, /) -> HeadTask:
        """Return the task with its settings."""
        from tangora.tasks.classification.tasks import finish  # deferred: torch

        return finish(task, config)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return what the head reads, and how images are resized, cropped and normalized."""
        from tangora.tasks.classification.base import of_base  # deferred: torch

        return {"reads": of_base(base).reads, "preprocessing": base.processor.to_dict()}

    def collate(self, base: Base, /) -> Collator:
        """Return a collator that stacks pixels."""
        from tangora.tasks.classification.inputs import HeadCollator  # deferred: torch

        return HeadCollator()

    def readout(self, task: Task, base: Base, /) -> RowReadout:
        """Return a readout with the head's first values."""
        from tangora.tasks.classification.tasks import row_readout  # deferred: torch

        return row_readout(task, base)

    def followed(self, task: Task, /) -> None:
        """Return None: a head reads features with their length, of which unit features have none."""

    def examples(self, table: Table, config: ImageSettings, /) -> Iterator[Image]:
        """Iterate over the image column."""
        from tangora.tasks.images import rgb  # deferred: torch

        return (rgb(row[config.image], table.place(i)) for i, row in enumerate(table.rows([config.image])))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads a vision model."""
        return "AutoModel"


FAMILY = ImageClassification()
