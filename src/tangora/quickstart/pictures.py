"""Read the pictures in the scikit-learn and scikit-image packages from their files, without downloads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tangora.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8
    from numpy import ndarray

__all__ = ["digits", "faces", "photo"]

Package = Literal["skimage", "sklearn"]
_FOLDERS: dict[str, str] = {"skimage": "data", "sklearn": "datasets/images"}
_MAX_SIDE = 750


def photo(file: str, package: Package = "skimage") -> UInt8[ndarray, "height width 3"]:
    """Return a photograph in RGB; larger ones are reduced by an integer factor until no side exceeds 750 pixels.

    Raises:
        DataError: the installed package does not include the file.
    """
    from PIL import Image  # deferred: an extra

    with Image.open(_path(file, package)) as opened:
        picture = opened.convert("RGB")
    picture = picture.reduce(-(-max(picture.size) // _MAX_SIDE))
    return np.asarray(picture, dtype=np.uint8)


def digits() -> tuple[UInt8[ndarray, "n 8 8"], Int[ndarray, " n"]]:
    """Return scanned handwritten digits and their labels (UCI optical recognition, test part)."""
    from sklearn.datasets import load_digits  # deferred: an extra

    images, labels = load_digits(return_X_y=True)
    scaled = np.rint(images.reshape(-1, 8, 8) * (255 / 16))
    return scaled.astype(np.uint8), labels.astype(np.int64)


def faces() -> tuple[UInt8[ndarray, "n 25 25"], Int[ndarray, " n"]]:
    """Return patches of Labeled Faces in the Wild, without duplicates, and labels: a face (0) or not (1)."""
    patches: Float[ndarray, "200 25 25"] = np.load(_path("lfw_subset.npy", "skimage"), allow_pickle=False)
    images = np.rint(patches * 255).clip(0, 255).astype(np.uint8)
    labels = np.repeat(np.array([0, 1], dtype=np.int64), 100)
    first = np.sort(np.unique(images.reshape(len(images), -1), axis=0, return_index=True)[1])
    return images[first], labels[first]


def _path(file: str, package: Package) -> Path:
    spec = importlib.util.find_spec(package)
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        path = Path(root) / _FOLDERS[package] / file
        if path.is_file():
            return path
    raise DataError(
        "the package does not include this picture",
        got=file,
        where=f"{package} {_FOLDERS[package]}",
        fix="install the versions named in constraints.txt",
    )
