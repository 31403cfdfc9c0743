"""The family `image-dense`: a vision model with a trained decoder for every task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.tasks.contract import AnswerForm, Answers
from tangora.tasks.dense.settings import DenseBaseSettings, DenseSettings

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.contract import Targets
    from tangora.tasks.dense.base import DenseBase
    from tangora.tasks.dense.inputs import DenseCollator
    from tangora.tasks.dense.readout import DenseReadout
    from tangora.tasks.dense.tasks import DenseTask
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task

__all__ = ["FAMILY", "ImageDense"]

_KINDS: dict[str, Answers] = {"segmentation": "class_map", "binary": "binary_map", "regression": "number_map"}


class ImageDense:
    """A class, a mark or a number for every pixel of an image; see `tangora.tasks.dense`."""

    name = "image-dense"
    base_settings = DenseBaseSettings
    task_settings = DenseSettings
    unused: tuple[str, ...] = ()

    def form(self, config: DenseSettings, /) -> AnswerForm:
        """Return maps, by the problem. Logits of pixels make no columns."""
        return AnswerForm(_KINDS[config.problem], None)

    def load(self, config: DenseBaseSettings, /) -> DenseBase:
        """Load the backbone and its image processor, and find the shapes of its stages."""
        from tangora.tasks.dense.base import dense_base  # deferred: torch
        from tangora.tasks.images import image_processor  # deferred: torch

        return dense_base(config, image_processor(config))

    def targets(self, tables: Mapping[str, Table], config: DenseSettings, /) -> Targets:
        """Return a map per row, at the resolution of its image."""
        from tangora.tasks.dense.targets import dense_targets  # deferred: torch

        return dense_targets(tables, config)

    def encode(
        self, table: Table, targets: Sequence[Any], config: DenseSettings, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return pixels of the image column, and maps at their resolution."""
        from tangora.tasks.dense.inputs import dense_inputs  # deferred: torch

        return dense_inputs(table, targets, config, base)

    def decides(self, config: DenseSettings, base: Base, /) -> Mapping[str, Any]:
        """Return stages and width of the decoder, problem, loss and weight."""
        from tangora.tasks.dense.base import of_base  # deferred: torch

        held, settings = of_base(base), base.config
        decoder = {"stages": held.stages, "pixels": held.pixels, "width": getattr(settings, "width", None)}
        return {**decoder, "problem": config.problem, "loss": config.loss, "positive_weight": config.positive_weight}

    def finish(self, task: Task, config: DenseSettings, base: Base, /) -> DenseTask:
        """Return the task with its settings, and with targets at the resolution of the model's input."""
        from tangora.tasks.dense.tasks import finish  # deferred: torch

        return finish(task, config)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return what the decoder reads, and how images are resized, cropped and normalized."""
        from tangora.tasks.dense.base import of_base  # deferred: torch

        held = of_base(base)
        shapes = {"stages": [list(stage) for stage in held.stages], "pixels": list(held.pixels)}
        return {**shapes, "preprocessing": base.processor.to_dict()}

    def collate(self, base: Base, /) -> DenseCollator:
        """Return a collator that stacks pixels and maps."""
        from tangora.tasks.dense.inputs import DenseCollator  # deferred: torch

        return DenseCollator()

    def readout(self, task: Task, base: Base, /) -> DenseReadout:
        """Return a readout with the decoder's first values."""
        from tangora.tasks.dense.tasks import dense_readout  # deferred: torch

        return dense_readout(task, base)

    def followed(self, task: Task, /) -> None:
        """Return None: a decoder reads many features per image, not one."""

    def examples(self, table: Table, config: DenseSettings, /) -> Iterator[Image]:
        """Iterate over the image column."""
        from tangora.tasks.dense.inputs import pictures  # deferred: torch

        return pictures(table, config)

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads a vision model."""
        return "AutoModel"


FAMILY = ImageDense()
