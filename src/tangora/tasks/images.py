"""Preprocess images, and load the two-tower models (CLIP, SigLIP) that embed images and texts in one space."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tangora.errors import DataError, ModelError
from tangora.support.extras import require
from tangora.tasks.base import pretrained, processor, refuse_other_tokens, weights_fingerprint
from tangora.tasks.zero_shot import TextEncoder, ZeroShotBase

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image

    from tangora.config.tasks import BaseConfig, BaseSettings, TaskConfig
    from tangora.tasks.base import Base
    from tangora.tasks.classification.settings import ImageSettings
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["encode", "features", "image_processor", "load", "pixels", "rgb"]

# model_type -> the class of its vision tower alone
_TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
_CHUNK = 128
# The decoders that images of data sets need; that of PostScript, among others, would start a program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 1 << 27  # as RGB 400 MB
_NARROWEST = 100


def load(config: BaseConfig) -> ZeroShotBase:
    """Load the vision tower as backbone, in the class for the tower alone, so that adapters fit that class."""
    require("vision", purpose="a model of images")
    import transformers  # deferred: it takes a second to import

    model: Any = pretrained(transformers.AutoModel, config)
    kind = str(model.config.model_type)
    if kind not in _TOWERS:
        fix = f"use a checkpoint of {' or '.join(_TOWERS)}"
        raise ModelError("no image tower for this kind of model", got=kind, where=config.model, fix=fix)
    images = image_processor(config)
    tokenizer = processor(transformers.AutoTokenizer, config)
    refuse_other_tokens(tokenizer, model.text_model, config.model)
    backbone = pretrained(getattr(transformers, _TOWERS[kind]), config)
    scale = config.scale or float(model.logit_scale.detach().exp())
    return ZeroShotBase(config, backbone, images, text=_text_tower(model, tokenizer), scale=scale)


def image_processor(config: BaseSettings) -> Any:
    """Load the image processor of a checkpoint."""
    require("vision", purpose="a model of images")
    # Deferred: it takes a second to import. Not from transformers itself: the name there demands torchvision in 5.4 and
    # some later versions, which name a class of torchvision's in that module's text; Pillow's processors need none.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor  # deferred: see above

    return processor(AutoImageProcessor, config, backend="pil")


def features(backbone: nn.Module, batch: Batch) -> Float[Tensor, "batch dim"]:
    """Return the vision tower's embedding of each image, in the space it shares with the text tower."""
    output = backbone(pixel_values=batch["pixel_values"])
    projected = getattr(output, "image_embeds", None)
    return projected if projected is not None else output.pooler_output  # type: ignore[no-any-return]


def encode(table: Table, config: TaskConfig | ImageSettings, base: Base) -> dict[str, list[Tensor] | Tensor]:
    """Return pixels of the image column."""
    return {"pixel_values": pixels(table, config.image, base.processor)}


def pixels(table: Table, column: str, processor: Any) -> Float[Tensor, "rows 3 height width"]:
    """Return a column's images, resized, cropped and normalized by a checkpoint's image processor.

    Raises:
        DataError: there is no such column, or a row has no image in it.
    """
    table.need(column, "image")
    if isinstance(table.data, dict) and isinstance(array := table.data[column], np.ndarray):
        _check_array(array, f"{table.where}, {column}")
    rows = (rgb(row[column], table.place(i)) for i, row in enumerate(table.rows([column])))
    chunks = [processor(images=chunk, return_tensors="pt")["pixel_values"] for chunk in _chunks(rows)]
    return torch.cat(chunks).float()


def _chunks(images: Iterable[Image]) -> Iterable[list[Image]]:
    images = iter(images)
    while chunk := list(islice(images, _CHUNK)):
        yield chunk


def _check_array(images: np.ndarray, where: str) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            "images must be uint8 of shape [n, height, width] or [n, height, width, 3]",
            got=f"{images.dtype} {list(images.shape)}",
            where=where,
            fix="convert the array",
        )


def rgb(value: Any, where: str) -> Image:
    """Convert an array, a file name, encoded bytes or an image of any mode to an RGB image.

    Raises:
        DataError: the value is none of these, or too large or too narrow to be resized.
    """
    require("vision", purpose="an image")
    from PIL import Image as images  # deferred: texts need none

    try:
        if isinstance(value, np.ndarray):
            value = images.fromarray(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)
        elif isinstance(value, (str, bytes, Mapping)):
            return _opened(value, where)
        _refuse_shape(value, where)
        return value.convert("RGB")  # type: ignore[no-any-return]
    except DataError:
        raise
    except Exception as cause:  # Pillow's decoders raise whatever a damaged file leads to
        detail = " ".join(str(cause).split())[:200]
        raise DataError(f"not an image ({detail})", where=where, fix="replace or drop the row") from cause


def _opened(value: str | bytes | Mapping[str, Any], where: str) -> Image:
    """Open an image file, or a row of `datasets`, which are turned as their camera was held."""
    from PIL import Image as images  # deferred: texts need none
    from PIL import ImageOps

    source: Any = value
    if isinstance(value, Mapping):
        source = value["bytes"] if value.get("bytes") else value["path"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", images.DecompressionBombWarning)  # larger ones are refused below
        opened = images.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    with opened:
        _refuse_shape(opened, where)
        return (ImageOps.exif_transpose(opened) if isinstance(value, Mapping) else opened).convert("RGB")


def _refuse_shape(image: Image, where: str) -> None:
    """Refuse an image by its size alone, before it is decoded or resized."""
    width, height = image.size
    if not 0 < width * height <= _MOST_PIXELS:
        what = f"an image must have 1 to {_MOST_PIXELS:,} pixels"
        raise DataError(what, got=f"{width} x {height}", where=where, fix="resize the image, or drop the row")
    if max(width, height) > _NARROWEST * min(width, height):  # its shorter side is resized to that of the model's input
        what = f"an image's longer side must be at most {_NARROWEST} times the shorter"
        raise DataError(what, got=f"{width} x {height}", where=where, fix="crop the image, or drop the row")


def _text_tower(model: Any, tokenizer: Any) -> TextEncoder:
    tower, projection = model.text_model, getattr(model, "text_projection", nn.Identity())
    parts = nn.ModuleList([tower, projection]).requires_grad_(False).eval()
    longest = min(int(tokenizer.model_max_length), int(model.config.text_config.max_position_embeddings))
    # SigLIP was trained on texts padded to the full length, without a mask
    unmasked = model.config.model_type == "siglip"
    padding: Any = "max_length" if unmasked else True
    wanted = ["input_ids"] if unmasked else ["input_ids", "attention_mask"]

    def embed(texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        batch = tokenizer(list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt")
        device = next(parts.parameters()).device
        with torch.no_grad():
            embedded: Tensor = projection(tower(**{name: batch[name].to(device) for name in wanted}).pooler_output)
        return embedded.float().cpu()

    return TextEncoder(embed, weights_fingerprint(parts), parts)
