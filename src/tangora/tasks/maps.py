"""Maps, an array for each image, as answers: where they do not count, and as JSON for files of scores. No torch."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["NO_MAP", "UNCOUNTED", "counted", "packed", "plain", "unpacked"]

UNCOUNTED = 255
"""The value of pixels that do not count, in targets of classes and of marks. In numbers it is NaN."""

NO_MAP = np.zeros((0, 0), dtype=np.float32)
"""The target of a row without one."""

_KEY = "map"
_LEVEL = 6  # of zlib: maps of classes shrink tenfold


def counted(target: np.ndarray) -> Bool[np.ndarray, "height width"]:
    """Return which pixels of a target count.

    >>> counted(np.array([[0, 255]], dtype=np.uint8)).tolist(), counted(np.array([[0.5, np.nan]])).tolist()
    ([[True, False]], [[True, False]])
    """
    where: np.ndarray = ~np.isnan(target) if target.dtype.kind == "f" else target != UNCOUNTED
    return where


def packed(values: Sequence[Any]) -> list[Any]:
    """Return answers as JSON: maps compressed, other values as they are.

    >>> one = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> unpacked(packed([one, "text"]))[0].tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    return [_packed(value) if isinstance(value, np.ndarray) else value for value in values]


def unpacked(values: Sequence[Any]) -> list[Any]:
    """Return the answers that `packed` made JSON of.

    Raises:
        ValueError, KeyError: a map is damaged.
    """
    return [_unpacked(value) if isinstance(value, dict) and _KEY in value else value for value in values]


def plain(value: Any) -> Any:
    """Return an answer with lists of lists in place of a map, for files that people read."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _packed(value: np.ndarray) -> dict[str, Any]:
    data = zlib.compress(np.ascontiguousarray(value).tobytes(), _LEVEL)
    return {_KEY: base64.b64encode(data).decode("ascii"), "dtype": value.dtype.str, "shape": list(value.shape)}


def _unpacked(value: dict[str, Any]) -> np.ndarray:
    try:
        data = zlib.decompress(base64.b64decode(value[_KEY], validate=True))
        array: np.ndarray = np.frombuffer(data, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    except (zlib.error, TypeError) as cause:
        raise ValueError(f"a damaged map: {cause}") from cause
    return array
