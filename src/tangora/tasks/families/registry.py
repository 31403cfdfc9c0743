"""What a family of models has to provide; one file each, listed at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from tangora.tasks.families import text_to_text, zero_shot_image, zero_shot_text

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.config.recipe import BaseConfig, TaskConfig
    from tangora.tasks.base import Base
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """The functions of a family.

    Attributes:
        load: the base model of a configuration.
        encode: rows of a table to inputs, one entry per row.
        features: zero-shot: a batch to one vector per row, not normalized; None where the model answers in words.
    """

    load: Callable[[BaseConfig], Base]
    encode: Callable[[Table, TaskConfig, Base], dict[str, list[Tensor] | Tensor]]
    features: Callable[[nn.Module, BaseConfig, Batch], Float[Tensor, "batch dim"]] | None


FAMILIES: dict[str, Family] = {
    "image-zero-shot": Family(zero_shot_image.load, zero_shot_image.encode, zero_shot_image.features),
    "text-zero-shot": Family(zero_shot_text.load, zero_shot_text.encode, zero_shot_text.features),
    "text-to-text": Family(text_to_text.load, text_to_text.encode, None),
}
