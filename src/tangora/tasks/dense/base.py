"""Load a backbone whose stages decoders read, and find their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tangora.errors import ModelError
from tangora.tasks.base import Base, pretrained, take_out

if TYPE_CHECKING:
    from tangora.tasks.dense.settings import DenseBaseSettings

__all__ = ["DenseBase", "dense_base", "of_base", "stages_of"]

_PROBE = 64  # pixels of a side


@dataclass(kw_only=True, repr=False)
class DenseBase(Base):
    """A base whose tasks have decoders.

    Attributes:
        pixels: height and width of the model's input.
        stages: channels, height and width of what decoders read, the finest first.
    """

    pixels: tuple[int, int]
    stages: tuple[tuple[int, int, int], ...]


def dense_base(config: DenseBaseSettings, preprocessor: Any) -> DenseBase:
    """Load the backbone of ``AutoModel``, without its pooler, and run it once to see the shapes of its stages.

    Raises:
        ModelError: the checkpoint cannot be loaded, or the network has no stages that decoders can read.
    """
    import transformers  # deferred: it takes a second to import
    from PIL import Image

    backbone = pretrained(transformers.AutoModel, config, unused=("pooler",))
    pooler: Any = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):  # else it only averages
        take_out(backbone, ("pooler",))
    blank = Image.fromarray(np.zeros((_PROBE, _PROBE, 3), np.uint8))
    pixels = preprocessor(images=[blank], return_tensors="pt")["pixel_values"].float()
    with torch.no_grad():
        stages = stages_of(backbone.eval(), pixels, config.levels)
    shapes = tuple((int(s.shape[1]), int(s.shape[2]), int(s.shape[3])) for s in stages)
    return DenseBase(config, backbone, preprocessor, pixels=(pixels.shape[2], pixels.shape[3]), stages=shapes)


def of_base(base: Base) -> DenseBase:
    """Return the base as a `DenseBase`.

    Raises:
        ModelError: it was loaded by another family.
    """
    if not isinstance(base, DenseBase):
        fix = "load the base with family image-dense"
        raise ModelError("the base has no stages", got=base.config.family, where="base.family", fix=fix)
    return base


def stages_of(backbone: nn.Module, pixels: Tensor, levels: int) -> list[Tensor]:
    """Return the outputs of a backbone's stages, each of shape [batch, channels, height, width], the finest first.

    A network with stages (Swin, ConvNeXt, ...) has one output each, before the next stage merges its patches; the last
    one is the network's normalized output, if it has one. Of a network without stages (ViT, DINOv2, ...), it is the
    output of some of its layers, evenly spaced.

    Args:
        backbone: the base's own, or a `PeftModel` around it.
        pixels: [batch, 3, height, width].
        levels: the number of layers of a network without stages.

    Raises:
        ModelError: its outputs have no place in the image, or the installed transformers cannot give Swin's.
    """
    config: Any = backbone.config
    options = {"output_hidden_states_before_downsampling": True} if config.model_type == "swin" else {}
    output = backbone(pixel_values=pixels, output_hidden_states=True, **options)
    last = output.last_hidden_state
    reshaped = getattr(output, "reshaped_hidden_states", None)
    if reshaped is not None:
        # transformers 5.4 takes the option without a word, and gives what the next stage reads: the finest is lost.
        if options and len(reshaped) > 2 and reshaped[1].shape[2:] != reshaped[0].shape[2:]:
            what = "the installed transformers gives Swin's stages only after their patches are merged"
            raise ModelError(what, where="base.model", fix="run: pip install --upgrade 'transformers<6'")
        return [*reshaped[1:-1], _in_place(last, tuple(reshaped[-1].shape[2:]))]
    hidden = output.hidden_states
    if hidden[-1].ndim == 4:
        return list(hidden[1:])
    chosen = [round((len(hidden) - 1) * (i + 1) / levels) for i in range(min(levels, len(hidden) - 1))]
    sides = [_side(pixels.shape[2 + axis], config.patch_size, axis) for axis in (0, 1)]
    return [_in_place(hidden[i], (sides[0], sides[1])) for i in chosen[:-1]] + [_in_place(last, (sides[0], sides[1]))]


def _side(pixels: int, patch: Any, axis: int) -> int:
    return pixels // int(patch if isinstance(patch, int) else patch[axis])


def _in_place(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return tokens of shape [batch, tokens, channels] in their places; the first ones may belong to no place."""
    count = size[0] * size[1]
    if tokens.ndim != 3 or tokens.shape[1] < count:
        fix = "use a network whose tokens are patches"
        raise ModelError("outputs have no place in the image", got=list(tokens.shape), where="base.model", fix=fix)
    placed: Tensor = tokens[:, tokens.shape[1] - count :].transpose(1, 2).unflatten(2, cast("Any", size))
    return placed
