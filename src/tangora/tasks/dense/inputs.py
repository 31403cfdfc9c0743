"""Rows as inputs: pixels by the image processor, and maps moved as it moves pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tangora.errors import DataError, ModelError
from tangora.tasks.dense.base import of_base
from tangora.tasks.dense.targets import found
from tangora.tasks.images import rgb
from tangora.tasks.maps import UNCOUNTED

if TYPE_CHECKING:
    from PIL.Image import Image

    from tangora.tasks.base import Base
    from tangora.tasks.dense.settings import DenseSettings
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["DenseCollator", "dense_inputs", "geometry", "pictures"]

_CHUNK = 128
_NEAREST = 0  # PIL.Image.Resampling.NEAREST


@dataclass(frozen=True)
class DenseCollator:
    """Stacks pixels and maps; it can be pickled for data loader processes."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of the rows."""
        return {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")}


def dense_inputs(table: Table, targets: Sequence[Any], config: DenseSettings, base: Base) -> dict[str, Any]:
    """Return pixels, and as ``labels`` the maps at their resolution: uint8, or float32 of a regression.

    A row without a map, as for a prediction, has a map of which no pixel counts.

    Raises:
        DataError: a column is missing, an image cannot be read, or a map has another size than its image.
    """
    held = of_base(base)
    pixels, labels = [], []
    for first, chunk in _chunks(pictures(table, config)):
        values = base.processor(images=chunk, return_tensors="pt")["pixel_values"].float()
        if tuple(values.shape[2:]) != held.pixels:
            what = "the image processor gives images of several sizes"
            raise DataError(what, got=list(values.shape[2:]), where=table.place(first, config.image), fix="resize them")
        pixels.append(values)
        for row, image in enumerate(chunk, start=first):
            size = (image.height, image.width)
            labels.append(_placed(targets[row], size, config, base.processor, held.pixels, table.place(row)))
    return {"pixel_values": torch.cat(pixels), "labels": torch.stack(labels)}


def pictures(table: Table, config: DenseSettings) -> Iterator[Image]:
    """Iterate over the image column."""
    table.need(config.image, "image")
    rows = enumerate(table.rows([config.image]))
    return (rgb(found(row[config.image], table), table.place(number)) for number, row in rows)


def _chunks(images: Iterator[Image]) -> Iterator[tuple[int, list[Image]]]:
    """Yield the number of the first image of a chunk, and the chunk."""
    first, chunk = 0, []
    for image in images:
        chunk.append(image)
        if len(chunk) == _CHUNK:
            yield first, chunk
            first, chunk = first + _CHUNK, []
    if chunk:
        yield first, chunk


def _placed(
    target: np.ndarray, size: tuple[int, int], config: DenseSettings, processor: Any, shape: tuple[int, int], where: str
) -> Tensor:
    kind, outside = (np.float32, np.nan) if config.problem == "regression" else (np.uint8, UNCOUNTED)
    placed = np.full(shape, outside, dtype=kind)
    if target.size:
        if target.shape != size:
            fix = "give maps of the size of their images"
            raise DataError(f"a map of {target.shape} for an image of {size}", where=where, fix=fix)
        rows, columns, inside = geometry(processor, size)
        placed[inside] = target[rows[inside], columns[inside]]
    return torch.from_numpy(placed)


def geometry(processor: Any, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row and column in an image for every pixel that a processor makes of it, and which pixels are in it.

    Processors resize, crop and pad in ways of their own. So their geometry is not computed again here: an image of
    coordinates goes through the processor, with the nearest pixel in place of interpolation and without normalization.

    Args:
        processor: of transformers.
        size: height and width of the image.

    Raises:
        ModelError: the processor changes values too.
    """
    return _geometry(_Held(processor), size)


@dataclass(frozen=True, eq=False)
class _Held:
    """A processor by its settings, so that results are kept between calls."""

    processor: Any

    def __hash__(self) -> int:
        return hash(repr(self.processor))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and repr(self.processor) == repr(other.processor)


@lru_cache(maxsize=64)
def _geometry(held: _Held, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from PIL import Image  # deferred: an extra

    height, width = size
    marked = np.full(size, 255)
    images = []
    for coordinate in np.meshgrid(np.arange(height), np.arange(width), indexing="ij"):
        channels = np.stack([coordinate // 256, coordinate % 256, marked], -1)  # two bytes, and 255 inside the image
        images.append(Image.fromarray(channels.astype(np.uint8)))
    options = {"do_rescale": False, "do_normalize": False, "resample": _NEAREST, "return_tensors": "pt"}
    moved = held.processor(images=images, **options)["pixel_values"].numpy().astype(np.float64)
    marks = moved[:, 2]
    if not np.isin(marks, (0, 255)).all():
        what = "the image processor does more than resize, crop, pad, rescale and normalize"
        raise ModelError(what, got=type(held.processor).__name__, where="base.model", fix="use another processor")
    rows, columns = (256 * moved[:, 0] + moved[:, 1]).astype(np.int64)
    return rows, columns, marks[0] == 255
