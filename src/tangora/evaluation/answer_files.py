"""Write answers beside the columns of their rows, a block at a time, as JSON lines, CSV or Parquet."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.errors import ArgumentError, DataError
from tangora.support.extras import require
from tangora.support.files import atomic_file
from tangora.tasks.maps import plain

if TYPE_CHECKING:
    from tangora.evaluation.kept import Kept
    from tangora.evaluation.row_answers import RowAnswers
    from tangora.tasks.contract import Answers

__all__ = ["ANSWER", "PROBABILITY", "answer_columns", "answers_written_to", "check_suffix"]

ANSWER, PROBABILITY = "answer", "probability"
"""The columns that are added; with the probabilities of all classes also ``probability_CLASS``."""

Write: TypeAlias = "Callable[[RowAnswers], None]"


def check_suffix(path: Path) -> None:
    """Refuse a file whose name does not end in the suffix of one of the kinds.

    Raises:
        ArgumentError: names them.
    """
    if path.suffix.lower() not in _WRITERS:
        fix = f"give a name that ends in {', '.join(_WRITERS)}"
        raise ArgumentError("the kind of the output is not clear", got=path.name, where="--out", fix=fix)


def answer_columns(answers: RowAnswers, *, every: bool = False) -> dict[str, list[Any]]:
    """Return the columns of answers: ``answer``, and for classes ``probability``.

    Args:
        answers: of some rows.
        every: also a column ``probability_CLASS`` for each class.
    """
    columns: dict[str, list[Any]] = {ANSWER: [plain(answer) for answer in answers]}
    if (own := answers.probability) is not None:
        columns[PROBABILITY] = _rounded(own.tolist())
    if every and answers.probabilities is not None:
        for name, values in zip(answers.labels, answers.probabilities.T.tolist(), strict=True):
            columns[f"{PROBABILITY}_{name}"] = _rounded(values)
    return columns


def _rounded(values: Sequence[float]) -> list[float]:
    """Return float32 numbers with the digits that they have."""
    return [float(f"{value:.7g}") for value in values]


@contextlib.contextmanager
def answers_written_to(
    path: Path, kept: Kept, kind: Answers, labels: Sequence[str], *, every: bool = False, overwrite: bool = False
) -> Iterator[Write]:
    """Provide a function that writes the answers to the next rows; the file appears, complete, when the block ends.

    Args:
        path: of the file; its suffix determines its kind.
        kept: the columns of the rows.
        kind: of the answers.
        labels: names of the classes.
        every: write the probabilities of all classes.
        overwrite: replace an existing file.

    Raises:
        ArgumentError: the suffix is unknown.
        DataError: the rows have a column with the name of one that is added.
        OutputError: the file exists, or cannot be written.
    """
    check_suffix(path)
    require("train", purpose="writing answers")
    added = [ANSWER, PROBABILITY, *(f"{PROBABILITY}_{name}" for name in (labels if every else ()))]
    if clash := [name for name in kept.names if name in added]:
        fix = "rename it, or leave it out"
        raise DataError("the rows have a column of a name that is added", got=clash[0], where="--in", fix=fix)
    with atomic_file(path, overwrite=overwrite) as scratch, _WRITERS[path.suffix.lower()](scratch, kept, kind) as write:
        yield lambda answers: write(answer_columns(answers, every=every))


@contextlib.contextmanager
def _jsonl(path: Path, kept: Kept, kind: Answers) -> Iterator[Callable[[dict[str, list[Any]]], None]]:
    with path.open("w", encoding="utf-8", newline="\n") as file:

        def write(columns: dict[str, list[Any]]) -> None:
            for row in _rows(kept, columns):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

        yield write


@contextlib.contextmanager
def _csv(path: Path, kept: Kept, kind: Answers) -> Iterator[Callable[[dict[str, list[Any]]], None]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        header: list[str] = []

        def write(columns: dict[str, list[Any]]) -> None:
            if not header:
                header.extend([*kept.names, *columns])
                writer.writerow(header)
            writer.writerows([_cell(row.get(name)) for name in header] for row in _rows(kept, columns))

        yield write


@contextlib.contextmanager
def _parquet(path: Path, kept: Kept, kind: Answers) -> Iterator[Callable[[dict[str, list[Any]]], None]]:
    import pyarrow  # type: ignore[import-untyped]  # deferred: an extra
    from pyarrow import parquet

    text, number = pyarrow.string(), pyarrow.float64()
    of_kind = {"number": number, "likelihood": pyarrow.list_(number)}
    of_kind |= dict.fromkeys(("labels", "tags"), pyarrow.list_(text))
    of_kind |= dict.fromkeys(("class_map", "binary_map"), pyarrow.list_(pyarrow.list_(pyarrow.uint8())))
    of_kind["number_map"] = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def write(columns: dict[str, list[Any]]) -> None:
            table = kept.table(len(columns[ANSWER]))
            for name, values in columns.items():
                type_ = of_kind.get(kind, text) if name == ANSWER else pyarrow.float32()
                table = table.append_column(name, pyarrow.array(values, type_))
            if not opened:
                opened.append(stack.enter_context(parquet.ParquetWriter(path, table.schema)))
            opened[0].write_table(table)

        yield write


_WRITERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _rows(kept: Kept, columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    rows = kept.dictionaries(len(columns[ANSWER]))
    for row, *values in zip(rows, *columns.values(), strict=True):
        yield {**row, **dict(zip(columns, values, strict=True))}


def _cell(value: Any) -> str:
    """Return a value as the text of a cell; what has parts is written as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
