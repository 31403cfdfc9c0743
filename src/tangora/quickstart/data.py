"""Four small image classification tasks and a captioned pretraining set, without shared pixels.

A photograph is divided into blocks of 2 x 2 tiles. A whole block goes to pretraining, train, validation or test, and a
tile is a row. So two rows of different sets never share pixels, though they may come from the same photograph. The
assignment follows from a hash of the position, not from a random generator: the same on every machine and version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tangora.errors import DataError
from tangora.quickstart import pictures
from tangora.support.extras import require

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8
    from numpy import ndarray

__all__ = ["SIZE", "SPLITS", "TEMPLATES", "Origin", "labels", "load", "names", "origins", "pieces", "pretraining"]

SIZE = 32
SPLITS = ("train", "validation", "test")
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a small image of a {}")
_TILE = 24
_BLOCK = 2 * _TILE

# Rows of each class in pretraining, train, validation and test; for photographs, the number of blocks.
_ROWS: dict[str, tuple[int, int, int, int]] = {"digits": (30, 70, 30, 40), "faces": (10, 45, 15, 28)}
_BLOCKS: dict[str, tuple[int, int, int, int]] = {"textures": (5, 25, 15, 40), "photos": (5, 22, 7, 14)}

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FACES = ("face", "background")
_TEXTURES = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png"}
_PHOTOS = {
    "astronaut": "astronaut.png",
    "cameraman": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coin": "coins.png",
    "galaxy": "hubble_deep_field.jpg",
    "tissue": "ihc.png",
    "moon": "moon.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
# Used in pretraining only, for variety; they belong to no task.
_EXTRA: dict[str, tuple[str, pictures.Package]] = {
    "motorcycle": ("motorcycle_left.png", "skimage"),
    "pagoda": ("china.jpg", "sklearn"),
    "flower": ("flower.jpg", "sklearn"),
}
_EXTRA_BLOCKS = 60
_LABELS = {"digits": _DIGITS, "textures": tuple(_TEXTURES), "faces": _FACES, "photos": tuple(_PHOTOS)}


@dataclass(frozen=True)
class Origin:
    """The origin of a row's pixels: a rectangle of a file, or of one item of a data set."""

    source: str
    top: int
    left: int
    height: int
    width: int

    def overlaps(self, other: Origin) -> bool:
        """Return whether the two rectangles share a pixel."""
        return (
            self.source == other.source
            and self.top < other.top + other.height
            and other.top < self.top + self.height
            and self.left < other.left + other.width
            and other.left < self.left + self.width
        )


@dataclass(frozen=True)
class _Row:
    image: UInt8[ndarray, "height width *rgb"]
    label: str
    origin: Origin


def names() -> list[str]:
    """Return the names of the tasks for `load`.

    >>> names()
    ['digits', 'textures', 'faces', 'photos']
    """
    return list(_LABELS)


def labels(name: str) -> list[str]:
    """Return class names in label order.

    Raises:
        DataError: there is no such task.

    >>> labels("textures")
    ['brick', 'grass', 'gravel']
    """
    if name not in _LABELS:
        raise DataError("no such built-in data set", got=name, where="builtin", fix=f"one of {', '.join(_LABELS)}")
    return list(_LABELS[name])


def load(name: str) -> dict[str, dict[str, UInt8[ndarray, "n 32 32 3"] | Int[ndarray, " n"]]]:
    """Return images (uint8, RGB, 32 x 32) and labels (int64) of the train, validation and test rows of a task.

    Raises:
        DataError: there is no such task, or an installed package lacks one of the pictures.

    >>> {split: len(rows["label"]) for split, rows in load("faces").items()}
    {'train': 90, 'validation': 30, 'test': 56}
    """
    classes = labels(name)
    return {
        split: {
            "image": _stack(rows),
            "label": np.array([classes.index(row.label) for row in rows], dtype=np.int64),
        }
        for split, rows in zip(SPLITS, _sets(name)[1:], strict=True)
    }


def origins(name: str) -> dict[str, list[Origin]]:
    """Return the origin of each row of each split, and under ``pretraining`` of the task's share of that set.

    Raises:
        DataError: see `load`.
    """
    labels(name)
    return {s: [r.origin for r in rows] for s, rows in zip(("pretraining", *SPLITS), _sets(name), strict=True)}


def pieces(name: str) -> dict[str, dict[str, list[UInt8[ndarray, "height width *rgb"]]]]:
    """Return split -> label -> the images of its rows as they were cut, before resizing.

    Raises:
        DataError: see `load`.
    """
    classes = labels(name)
    sets = dict(zip(SPLITS, _sets(name)[1:], strict=True))
    return {s: {label: [r.image for r in rows if r.label == label] for label in classes} for s, rows in sets.items()}


def pretraining() -> tuple[UInt8[ndarray, "n 32 32 3"], list[str]]:
    """Return images and captions ("a photo of a cat") that are in no task; the templates alternate.

    Raises:
        DataError: an installed package lacks one of the pictures.
    """
    rows = [row for name in names() for row in _sets(name)[0]]
    for label, (file, package) in _EXTRA.items():
        rows += _tiles(label, file, _EXTRA_BLOCKS, package)
    captions = [TEMPLATES[i % len(TEMPLATES)].format(row.label) for i, row in enumerate(rows)]
    return _stack(rows), captions


@lru_cache(maxsize=4)
def _sets(name: str) -> tuple[list[_Row], list[_Row], list[_Row], list[_Row]]:
    require("quickstart", purpose="the quickstart")
    if name in ("digits", "faces"):
        by_class, counts = _items(name), _ROWS[name]
    else:
        files, blocks = (_TEXTURES if name == "textures" else _PHOTOS), _BLOCKS[name]
        by_class = {label: _tiles(label, file, sum(blocks)) for label, file in files.items()}
        counts = tuple(4 * n for n in blocks)  # type: ignore[assignment]
    cut: tuple[list[_Row], ...] = ([], [], [], [])
    for rows in by_class.values():
        start = 0
        for chosen, count in zip(cut, counts, strict=True):
            chosen.extend(rows[start : start + count])
            start += count
    return cut  # type: ignore[return-value]


def _items(name: str) -> Mapping[str, list[_Row]]:
    images, numbers = pictures.digits() if name == "digits" else pictures.faces()
    height, width = images.shape[1:]
    rows = [
        _Row(image, _LABELS[name][number], Origin(f"{name}/{i}", 0, 0, height, width))
        for i, (image, number) in enumerate(zip(images, numbers, strict=True))
    ]
    rows.sort(key=lambda row: _order(row.origin.source))
    return {label: [row for row in rows if row.label == label] for label in _LABELS[name]}


def _tiles(label: str, file: str, blocks: int, package: pictures.Package = "skimage") -> list[_Row]:
    """Return the tiles of the first ``blocks`` blocks in hash order, block by block."""
    picture = pictures.photo(file, package)
    height, width = picture.shape[:2]
    corners = [(y, x) for y in range(0, height - _BLOCK + 1, _BLOCK) for x in range(0, width - _BLOCK + 1, _BLOCK)]
    corners.sort(key=lambda corner: _order(f"{file}/{corner[0]}/{corner[1]}"))
    if len(corners) < blocks:
        raise DataError(
            "the picture is smaller than expected", got=picture.shape, where=file, fix="reinstall " + package
        )
    tiles = [(y + dy, x + dx) for y, x in corners[:blocks] for dy in (0, _TILE) for dx in (0, _TILE)]
    return [_Row(picture[y : y + _TILE, x : x + _TILE], label, Origin(file, y, x, _TILE, _TILE)) for y, x in tiles]


def _order(position: str) -> str:
    return hashlib.sha256(position.encode()).hexdigest()


def _stack(rows: Sequence[_Row]) -> UInt8[ndarray, "n 32 32 3"]:
    from PIL import Image  # deferred: an extra

    def resized(image: UInt8[ndarray, "height width *rgb"]) -> UInt8[ndarray, "32 32 3"]:
        picture = Image.fromarray(image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.asarray(picture, dtype=np.uint8)

    return np.stack([resized(row.image) for row in rows])
