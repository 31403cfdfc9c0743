"""Read the rows of a data set from a recipe's `Source`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora import quickstart
from tangora.errors import ArgumentError, DataError
from tangora.support.extras import require
from tangora.support.files import reachable
from tangora.support.validation import did_you_mean
from tangora.tasks.arrays import read_arrays, refuse_large
from tangora.tasks.text_files import read_csv, read_jsonl

if TYPE_CHECKING:
    from datasets import Dataset

    from tangora.config.recipe import Source

__all__ = ["IMAGES", "Table", "read", "read_file", "read_whole"]

IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
"""The suffixes of image files."""


@dataclass(frozen=True)
class Table:
    """Rows of one split: a `datasets.Dataset` or columns in memory, and the class names of label columns.

    ``numbers`` are the numbers of the rows in the source, after a selection. ``first_line`` is the line of row 0 in a
    text file with one line for each row; None of other sources.
    """

    data: Dataset | dict[str, Sequence[Any] | np.ndarray]
    where: str
    class_names: Mapping[str, list[str]]
    numbers: Sequence[int] | None = None
    first_line: int | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.data.values()))) if isinstance(self.data, dict) else len(self.data)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.data) if isinstance(self.data, dict) else list(self.data.column_names)

    def place(self, row: int, column: str | None = None) -> str:
        """Return the name of a row in errors, with its number in the source."""
        number = row if self.numbers is None else self.numbers[row]
        line = "" if self.first_line is None else f" (line {number + self.first_line})"
        return f"{self.where}, {f'column {column}, ' if column else ''}row {number}{line}"

    def need(self, column: str, key: str) -> None:
        """Raise `DataError` unless there is such a column; ``key`` is the recipe's key for it."""
        if column not in self.columns:
            fix = did_you_mean(column, self.columns)
            if len(self.columns) == 1 and any(mark in self.columns[0] for mark in ";\t|"):
                fix = f"the file has one column, {self.columns[0]!r}: separate columns by commas, or set source.sep"
            raise DataError(f"unknown column for {key}", got=column, where=self.where, fix=fix)

    def column(self, name: str) -> list[Any]:
        """Return the values of one column, in order."""
        if isinstance(self.data, dict):
            values = self.data[name]
            return values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)
        return list(self.data[name])

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows as dictionaries; images are decoded one at a time."""
        if isinstance(self.data, dict):
            columns = {name: self.data[name] for name in names}
            return ({name: values[i] for name, values in columns.items()} for i in range(len(self)))
        return iter(self.data.select_columns(list(names)))

    def select(self, rows: Sequence[int]) -> Table:
        """Return the rows with these numbers, in this order."""
        numbers = [self.numbers[i] for i in rows] if self.numbers is not None else list(rows)
        if isinstance(self.data, dict):
            picked = {
                name: values[list(rows)] if isinstance(values, np.ndarray) else [values[i] for i in rows]
                for name, values in self.data.items()
            }
            return replace(self, data=picked, numbers=numbers)
        return replace(self, data=self.data.select(rows), numbers=numbers)


def read(source: Source, task: str) -> dict[str, Table]:
    """Read the splits of ``source``, at least ``train`` and ``test``.

    Raises:
        DataError: a file is missing or unreadable, a split is missing or empty, or two splits are the same rows.
        MissingExtraError: the extra ``train`` is not installed.
    """
    require("train", purpose="reading data")
    if source.single is not None:
        raise ArgumentError(
            "a source of one file has no splits", where=f"task {task}", fix="use read_whole, and cut it"
        )
    tables = _hub(source, task) if source.kind == "hub" else _local(source, task)
    for split in ("train", "test"):
        if split not in tables:
            raise DataError(
                f"the {split} split is missing",
                where=f"task {task}",
                fix=f"it has {', '.join(tables) or 'none'}; name it under source.splits",
            )
    for split, table in tables.items():
        if not len(table):
            raise DataError(f"the {split} split is empty", where=table.where, fix="add rows")
    return tables


def read_whole(source: Source, task: str) -> Table:
    """Read a source of one file or folder, which has no splits.

    Raises:
        DataError: it is missing, unreadable or has fewer than three rows, which three splits need.
        MissingExtraError: the extra ``train`` is not installed.
    """
    require("train", purpose="reading data")
    table = _open(_reader(source), reachable(str(source.single), DataError, expand=True))
    if len(table) < 3:
        fix = "add rows: train, validation and test need one each"
        raise DataError("too few rows to be cut", got=len(table), where=table.where, fix=fix)
    return table


def _reader(source: Source) -> Callable[[Path], Table]:
    """Return the reader of a source's files."""
    if source.kind == "csv":
        return partial(_csv, sep=source.sep or ",", encoding=source.encoding)
    return partial(_jsonl, encoding=source.encoding) if source.kind == "jsonl" else READERS[source.kind]


def _local(source: Source, task: str) -> dict[str, Table]:
    if source.builtin is not None:
        return _builtin(source.builtin)
    files: Mapping[Any, str] = getattr(source, source.kind)
    seen: dict[Path, str] = {}
    for split, name in files.items():
        path = reachable(name, DataError, expand=True).resolve()
        if path in seen:
            raise DataError(
                f"{seen[path]} and {split} are the same rows", got=name, where=f"task {task}", fix="use separate files"
            )
        seen[path] = split
    reader = _reader(source)
    return {split: _open(reader, reachable(name, DataError, expand=True)) for split, name in files.items()}


def read_file(kind: str, path: Path) -> Table:
    """Read a file of one of the kinds of a source.

    Raises:
        DataError: it is missing or unreadable.
    """
    return _open(READERS[kind], path)


def _open(reader: Callable[[Path], Table], path: Path) -> Table:
    try:
        return reader(path)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("file not found", where=path, fix="check the path") from None
    except Exception as cause:  # pyarrow, zipfile and NumPy raise different exceptions
        detail = " ".join(str(cause).split())
        raise DataError(f"not readable ({detail})", where=path, fix="the file is corrupt or of another kind") from cause


def _parquet(path: Path) -> Table:
    import pyarrow  # type: ignore[import-untyped]  # deferred: an extra
    from pyarrow import parquet  # deferred: an extra

    file, batches, size = parquet.ParquetFile(path), [], 0
    for batch in file.iter_batches():  # a page of kilobytes can stand for any number of equal rows
        batches.append(batch)
        refuse_large(size := size + batch.nbytes, path)
    return _arrow(pyarrow.Table.from_batches(batches, file.schema_arrow), path)


def _csv(path: Path, sep: str = ",", encoding: str | None = None) -> Table:
    table, lines = read_csv(path, sep, encoding)
    return _by_line(_arrow(table, path), lines, 2)


def _jsonl(path: Path, encoding: str | None = None) -> Table:
    table, lines = read_jsonl(path, encoding)
    return _by_line(_arrow(table, path), lines, 1)


def _by_line(table: Table, lines: int, first: int) -> Table:
    """Return a table that names lines in errors, unless a row has several lines, or lines are empty."""
    return replace(table, first_line=first) if lines == len(table) + first - 1 else table


def _arrow(table: Any, path: Path) -> Table:
    """Return a pyarrow table as a data set in memory, without a cache on disk."""
    from datasets import Dataset  # deferred: an extra

    return _dataset(Dataset(table), str(path))


def _dataset(data: Dataset, where: str) -> Table:
    from datasets import Image  # deferred: an extra

    of_column = {column: getattr(feature, "feature", feature) for column, feature in data.features.items()}  # of lists
    names = {column: list(feature.names) for column, feature in of_column.items() if hasattr(feature, "names")}
    for column in [column for column, feature in data.features.items() if isinstance(feature, Image)]:
        data = data.cast_column(column, Image(decode=False))  # decoded later, with its size checked before
    return Table(data, where, names)


def _npz(path: Path) -> Table:
    arrays = dict(read_arrays(path))
    lengths = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise DataError("arrays must have one entry per row, all the same number", got=lengths, where=path)
    return Table(arrays, str(path), {})


def _imagefolder(path: Path) -> Table:
    if not path.is_dir():
        raise DataError("folder not found", where=path, fix="give a folder with one folder per class")
    images, labels = [], []
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        for file in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file()):
            images.append(str(file))
            labels.append(folder.name)
    if not images:
        raise DataError("no images found", where=path, fix="it needs one folder per class, with images in it")
    return Table({"image": images, "label": labels}, str(path), {})


def _builtin(name: str) -> dict[str, Table]:
    if name in quickstart.questions.names():
        asked = quickstart.questions.load(name)
        return {split: Table(columns, f"builtin {name}, {split}", {}) for split, columns in asked.items()}
    source = quickstart.scenes if name in quickstart.scenes.names() else quickstart
    names = {"label": named} if (named := source.labels(name)) else {}
    return {
        split: Table(dict(columns), f"builtin {name}, {split}", names) for split, columns in source.load(name).items()
    }


def _hub(source: Source, task: str) -> dict[str, Table]:
    """Load a data set from the Hub with `datasets`; without ``splits``, those of the three that exist."""
    import datasets  # deferred: an extra

    where = f"task {task}, {source.hub}"
    wanted: dict[Any, str] = dict(source.splits)
    try:
        if wanted:
            read = datasets.load_dataset(
                source.hub, source.config, revision=source.revision, split=list(wanted.values())
            )
            loaded = dict(zip(wanted, read, strict=True))
        else:
            read = datasets.load_dataset(source.hub, source.config, revision=source.revision)
            loaded = {split: read[split] for split in ("train", "validation", "test") if split in read}
    except Exception as cause:  # offline, unknown id, split or configuration: they raise different exceptions
        detail = " ".join(str(cause).split())
        raise DataError(
            f"the data set cannot be loaded ({detail})", where=where, fix="check hub, config, revision and splits"
        ) from cause
    if wanted:
        info = next(iter(loaded.values())).info.splits or {}
        _refuse_overlap(wanted, {name: split.num_examples for name, split in info.items()}, where)
    return {split: _dataset(data, f"{where}, {split}") for split, data in loaded.items()}


def _refuse_overlap(splits: Mapping[Any, str], sizes: Mapping[str, int], where: str) -> None:
    """Raise `DataError` if two splits share a row, such as ``train`` and ``train[:100]``."""
    from datasets import ReadInstruction  # deferred: an extra

    taken: list[tuple[str, Any]] = []
    for ours, theirs in splits.items():
        for part in ReadInstruction.from_spec(theirs).to_absolute(sizes):
            for other, seen in taken:
                if seen.splitname == part.splitname and seen.from_ < part.to and part.from_ < seen.to:
                    fix = "use disjoint slices"
                    raise DataError(f"{other} and {ours} share rows", got=theirs, where=where, fix=fix)
            taken.append((ours, part))


READERS: dict[str, Callable[[Path], Table]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "imagefolder": _imagefolder,
    "npz": _npz,
}
