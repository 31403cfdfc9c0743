"""Dense tasks on scenes that are composed here: digits, faces and stones on photographs, with exact masks.

    a tile of a photograph ◀── painted over, one after another ── digits (their ink), faces (an oval), stones (a disc)
    which object is on top at each pixel ──▶ segmentation, edges, saliency, distance

The pieces are those of `data.load`, from its own sets, so that two splits share no pixel. What is drawn follows from a
hash of the scene's number, not from a random generator: the same on every machine and version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tangora.errors import DataError
from tangora.quickstart.data import SIZE, pieces

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt8
    from numpy import ndarray

__all__ = ["SCENES", "labels", "load", "names"]

SCENES = {"train": 200, "validation": 60, "test": 120}
"""Split -> its number of scenes."""

_CLASSES = ("background", "digit", "face", "stone")
_TASKS = ("dense-segmentation", "dense-edges", "dense-saliency", "dense-distance")
_SALIENT = (1, 2)  # the classes that stand out: stones do not
_INK = 100
_LEAST, _MOST = 12, 20  # pixels of an object's side
_FAR = 8.0  # pixels; distances are given in this unit, and are 1 at most


def names() -> list[str]:
    """Return the names of the tasks for `load`."""
    return list(_TASKS)


def labels(name: str) -> list[str]:
    """Return class names in label order; empty for tasks without classes.

    Raises:
        DataError: there is no such task.

    >>> labels("dense-segmentation")
    ['background', 'digit', 'face', 'stone']
    """
    if name not in _TASKS:
        raise DataError("no such built-in data set", got=name, where="builtin", fix=f"one of {', '.join(_TASKS)}")
    return list(_CLASSES) if name == "dense-segmentation" else []


def load(name: str) -> dict[str, dict[str, ndarray]]:
    """Return images (uint8, RGB, 32 x 32) and maps of the train, validation and test scenes of a task.

    Maps are class numbers; marks (0 or 1) of the pixels at a border between objects, or of digits and faces; or the
    distance to the nearest border in units of 8 pixels (float32), 1 at most. All tasks have the same images.

    Raises:
        DataError: there is no such task, or an installed package lacks one of the pictures.
    """
    labels(name)
    return {split: {"image": image.copy(), "label": _map(name, *maps)} for split, (image, *maps) in _all().items()}


@lru_cache(maxsize=1)
def _all() -> Mapping[str, tuple[ndarray, ndarray, ndarray]]:
    """Return split -> images; for each pixel the number of the object on top; and its class."""
    made = {}
    for split, count in SCENES.items():
        parts = {name: pieces(name)[split] for name in ("photos", "digits", "faces", "textures")}
        scenes = [_scene(f"{split}/{number}", parts) for number in range(count)]
        made[split] = tuple(np.stack(column) for column in zip(*scenes, strict=True))
    return made  # type: ignore[return-value]


class _Draw:
    """Numbers that follow from a name."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def below(self, end: int) -> int:
        """Return the next number, from 0 to ``end - 1``."""
        self._count += 1
        return int.from_bytes(hashlib.sha256(f"{self._name}/{self._count}".encode()).digest()[:8], "big") % end


def _scene(name: str, parts: Mapping[str, Mapping[str, list[ndarray]]]) -> tuple[ndarray, ndarray, ndarray]:
    draw = _Draw(name)
    photos = [image for images in parts["photos"].values() for image in images]
    image = _resized(photos[draw.below(len(photos))], SIZE).copy()
    objects, classes = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    for number in range(1, 2 + draw.below(3)):
        kind, side = 1 + draw.below(3), _LEAST + draw.below(_MOST - _LEAST + 1)
        top, left = draw.below(SIZE - side + 1), draw.below(SIZE - side + 1)
        pixels, mask = _object(kind, side, parts, draw)
        place = (slice(top, top + side), slice(left, left + side))
        image[place][mask] = pixels[mask]
        objects[place][mask], classes[place][mask] = number, kind
    return image, objects, classes


def _object(
    kind: int, side: int, parts: Mapping[str, Mapping[str, list[ndarray]]], draw: _Draw
) -> tuple[UInt8[ndarray, "side side 3"], Bool[ndarray, "side side"]]:
    """Return the pixels of an object and where it is."""
    y, x = (np.indices((side, side)) + 0.5) / side - 0.5  # from -½ to ½
    if kind == 1:
        digits = [image for images in parts["digits"].values() for image in images]
        ink = _resized(digits[draw.below(len(digits))], side)[..., 0]
        color = [64 * draw.below(4) + 63 for _ in range(3)]
        return np.broadcast_to(np.array(color, np.uint8), (side, side, 3)), ink > _INK
    if kind == 2:
        faces = parts["faces"]["face"]
        return _resized(faces[draw.below(len(faces))], side), (x / 0.8) ** 2 + y**2 < 0.25
    stones = [*parts["textures"]["brick"], *parts["textures"]["gravel"]]
    return _resized(stones[draw.below(len(stones))], SIZE)[:side, :side], x**2 + y**2 < 0.25


def _resized(image: ndarray, side: int) -> UInt8[ndarray, "side side 3"]:
    from PIL import Image  # deferred: an extra

    picture = Image.fromarray(image).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8)


def _map(name: str, objects: Int[ndarray, "n h w"], classes: Int[ndarray, "n h w"]) -> ndarray:
    if name == "dense-segmentation":
        return np.array(classes)
    if name == "dense-saliency":
        return np.isin(classes, _SALIENT).astype(np.uint8)
    edges = _edges(objects)
    marks: ndarray = edges.astype(np.uint8)
    return marks if name == "dense-edges" else np.stack([_distances(one) for one in edges])


def _edges(objects: Int[ndarray, "n h w"]) -> Bool[ndarray, "n h w"]:
    """Return the pixels whose right or lower neighbour is of another object: borders one pixel wide."""
    edges = np.zeros(objects.shape, dtype=bool)
    edges[:, :-1] |= objects[:, :-1] != objects[:, 1:]
    edges[:, :, :-1] |= objects[:, :, :-1] != objects[:, :, 1:]
    return edges


def _distances(edges: Bool[ndarray, "h w"]) -> ndarray:
    """Return the distance of every pixel to the nearest edge."""
    places = np.argwhere(edges)
    if not len(places):
        return np.ones(edges.shape, np.float32)
    squares = (np.indices(edges.shape)[..., None] - places.T[:, None, None]) ** 2
    distances: ndarray = np.minimum(np.sqrt(squares.sum(0).min(-1)) / _FAR, 1).astype(np.float32)
    return distances
