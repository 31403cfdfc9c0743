"""Rows with an image: their pixels and tokens, and their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tangora.errors import ModelError
from tangora.tasks.images import pixels
from tangora.tasks.language import encoding
from tangora.tasks.language.collation import LanguageCollator
from tangora.tasks.values import Encoded
from tangora.tasks.vision_language.backbone import VisionLanguageBase

if TYPE_CHECKING:
    from tangora.config.vision_language import VisionLanguageTask
    from tangora.tasks.base import Base
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["VisionLanguageCollator", "encode", "of_base"]


def of_base(base: Base) -> VisionLanguageBase:
    """Return the base as a `VisionLanguageBase`.

    Raises:
        ModelError: it is of another family.
    """
    if not isinstance(base, VisionLanguageBase):
        fix = "load it with family vision-language"
        raise ModelError("the base reads no images beside texts", got=base.config.family, where="base", fix=fix)
    return base


def encode(table: Table, targets: Sequence[Any], config: VisionLanguageTask, base: Base) -> Encoded:
    """Return tokens of questions and answers, and the pixels of the images.

    Raises:
        DataError: a row has no image, or its texts cannot be converted.
    """
    texts = encoding.encode(table, targets, config, base)
    images = pixels(table, config.image, of_base(base).images)
    return Encoded({**texts, "pixel_values": images}, texts.cut, texts.longest)


@dataclass(frozen=True)
class VisionLanguageCollator(LanguageCollator):
    """Collates rows of tokens, as its parent does, with ``pixel_values``."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of the rows."""
        return {**super().__call__(rows), "pixel_values": torch.stack([row["pixel_values"] for row in rows])}
