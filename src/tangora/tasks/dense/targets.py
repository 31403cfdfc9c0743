"""Maps of rows, checked one by one: arrays, files and images as classes, marks or numbers. This needs no model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.errors import DataError
from tangora.support.extras import require
from tangora.tasks.contract import Targets
from tangora.tasks.labels import checked_names, given_names
from tangora.tasks.maps import UNCOUNTED, counted

if TYPE_CHECKING:
    from tangora.tasks.dense.settings import DenseSettings
    from tangora.tasks.sources import Table

__all__ = ["dense_targets", "found"]

_FORMATS = ("BMP", "GIF", "PNG", "PPM", "TIFF", "WEBP")  # JPEG would change numbers


def dense_targets(tables: Mapping[str, Table], config: DenseSettings) -> Targets:
    """Return a map for every row, at the resolution of its image.

    Raises:
        DataError: a column is missing; a map is missing, unreadable or not of two dimensions, has a value that is no
            class, or no pixel that counts; there are fewer than 2 or more than 255 classes.
    """
    raw = {split: _maps(table, config) for split, table in tables.items()}
    if config.problem == "segmentation":
        names = checked_names(given_names(tables, config), f"task {config.name}, labels")
        classes, number_of = _numbering(names, raw, config)
    else:
        classes, number_of = [], {}
    of_split = {
        split: [
            _target(value, config, number_of, tables[split].place(row, config.label)) for row, value in enumerate(rows)
        ]
        for split, rows in raw.items()
    }
    return Targets(classes, of_split, stratify=False)


def found(value: Any, table: Table) -> Any:
    """Return a relative path as one below the folder of the table's file, if there is such a file, else unchanged."""
    if not isinstance(value, str) or Path(value).is_absolute() or Path(value).exists():
        return value
    beside = Path(table.where).parent / value
    return str(beside) if beside.is_file() else value


def _maps(table: Table, config: DenseSettings) -> list[np.ndarray]:
    table.need(config.label, "label")
    rows = enumerate(table.rows([config.label]))
    return [_array(found(row[config.label], table), table.place(number, config.label)) for number, row in rows]


def _array(value: Any, where: str) -> np.ndarray:
    """Return a map's values as they are stored: of an array, lists, a file's name, encoded bytes or an image."""
    fix = "give an array [height, width], or an image file of one channel"
    if value is None:
        raise DataError("a map is missing", where=where, fix="drop the row")
    try:
        array = np.asarray(_opened(value) if isinstance(value, (str, bytes, Mapping)) else value)
    except Exception as cause:  # Pillow's decoders raise whatever a damaged file leads to
        detail = " ".join(str(cause).split())[:200]
        raise DataError(f"a map is not readable ({detail})", where=where, fix="replace or drop the row") from cause
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise DataError("a map has one value per pixel", got=f"{array.dtype} {list(array.shape)}", where=where, fix=fix)
    return array


def _opened(value: str | bytes | Mapping[str, Any]) -> np.ndarray:
    """Read an image file as it is stored, or an .npy file."""
    source: Any = (value["bytes"] or value["path"]) if isinstance(value, Mapping) else value
    if isinstance(source, str) and source.endswith(".npy"):
        return np.asarray(np.load(source, allow_pickle=False))
    require("vision", purpose="an image")
    from PIL import Image  # deferred: an extra

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as opened:
        return np.asarray(opened)


def _numbering(
    names: list[str] | dict[str, str] | None, raw: Mapping[str, list[np.ndarray]], config: DenseSettings
) -> tuple[list[str], dict[int, int]]:
    """Return class names, and value -> number of its class."""
    if names is None:
        present = {int(v) for rows in raw.values() for row in rows for v in np.unique(row)} - {_ignored(config)}
        names = [str(number) for number in range(max(present, default=0) + 1)]
    classes = list(dict.fromkeys(names.values() if isinstance(names, dict) else names))
    if not 2 <= len(classes) <= UNCOUNTED:
        what = f"a segmentation has 2 to {UNCOUNTED} classes"
        raise DataError(what, got=len(classes), where=f"task {config.name}, labels", fix="name them")
    if isinstance(names, dict):
        if odd := [key for key in names if not key.lstrip("-").isdigit()]:
            fix = "map values of pixels to names: {0: background, ...}"
            raise DataError("a value of pixels is a whole number", got=odd[0], where=f"task {config.name}", fix=fix)
        return classes, {int(key): classes.index(name) for key, name in names.items()}
    return classes, {number: number for number in range(len(classes))}


def _target(value: np.ndarray, config: DenseSettings, number_of: Mapping[int, int], where: str) -> np.ndarray:
    made = _VALUES[config.problem](value, config, number_of, where)
    if not counted(made).any():
        raise DataError("no pixel of a map counts", got=config.ignored, where=where, fix="correct ignored, or the row")
    return made


def _classes(value: np.ndarray, config: DenseSettings, number_of: Mapping[int, int], where: str) -> np.ndarray:
    target = np.full(value.shape, UNCOUNTED, dtype=np.uint8)
    for one in np.unique(value).tolist():
        if one == _ignored(config):
            continue
        if one not in number_of:
            fix = f"values are {', '.join(map(str, list(number_of)[:12]))}, or {_ignored(config)} for no class"
            raise DataError("a pixel has no class", got=one, where=where, fix=fix)
        target[value == one] = number_of[int(one)]
    return target


def _marks(value: np.ndarray, config: DenseSettings, number_of: Mapping[int, int], where: str) -> np.ndarray:
    target = (value > 0).astype(np.uint8)
    if config.ignored is not None:
        target[value == config.ignored] = UNCOUNTED
    return target


def _numbers(value: np.ndarray, config: DenseSettings, number_of: Mapping[int, int], where: str) -> np.ndarray:
    target = value.astype(np.float32) / np.float32(config.scale)
    if config.ignored is not None:
        target[value == config.ignored] = np.nan
    if np.isinf(target).any():
        raise DataError("a number is infinite", where=where, fix="use NaN for pixels that do not count")
    return np.asarray(target, dtype=np.float32)


_VALUES = {"segmentation": _classes, "binary": _marks, "regression": _numbers}


def _ignored(config: DenseSettings) -> int:
    return UNCOUNTED if config.ignored is None else int(config.ignored)
