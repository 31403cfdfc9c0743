"""Tasks from the records of adapters (``heads/<task>.json``), and rows that have inputs but no labels.

HeadRecord ─▶ settings of base and task, class names
file of rows ─▶ Split with placeholders as targets
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import ArgumentError, DataError
from tangora.support.extras import require
from tangora.support.files import reachable
from tangora.support.seams import FAMILIES
from tangora.support.validation import validate
from tangora.tasks.sources import Table, read_file
from tangora.tasks.values import Split, Task, fingerprint_of

if TYPE_CHECKING:
    from tangora.adapters.heads import HeadRecord
    from tangora.config.tasks import TaskSettings
    from tangora.tasks.base import Base
    from tangora.tasks.contract import Answers, Family

__all__ = ["SUFFIXES", "encoded", "kind_of", "read_inputs", "recorded_task", "settings_of"]

_KINDS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".npz": "npz", "": "imagefolder"}
"""Suffix of a file -> its kind as a source of rows."""

SUFFIXES = tuple(suffix for suffix in _KINDS if suffix)
"""The suffixes of files of rows."""

_PLACEHOLDERS: dict[Answers, Any] = {
    "classes": 0,
    "text": "",
    "number": 0.0,
    "labels": [],
    "tags": [],
    "likelihood": 0,
}


def kind_of(path: str | Path) -> str | None:
    """Return the kind of a file of rows, by its suffix; None if it is unknown."""
    return _KINDS.get(Path(path).suffix.lower())


def read_inputs(path: Path, name: str) -> Table:
    """Read a file of rows, or a folder of images.

    Raises:
        DataError: it is missing, unreadable, empty, or of an unknown kind.
        MissingExtraError: the extra ``train`` is not installed.
    """
    require("train", purpose="reading data")
    kind = kind_of(path)
    if kind is None:
        fix = f"give a file that ends in {', '.join(SUFFIXES)}, or a folder of images"
        raise DataError("the kind of the file is unknown", got=path.name, where=f"task {name}", fix=fix)
    table = read_file(kind, reachable(path, DataError, expand=True))
    if not len(table):
        raise DataError("the file has no rows", where=path, fix="add rows")
    return table


def recorded_task(name: str, record: HeadRecord, base: Base, table: Table) -> Task:
    """Return the task that a record describes, with the rows of a table as its only split, ``train``.

    The targets of the rows are placeholders: a label column is not read.

    Args:
        name: of the task.
        record: of an adapter of the task.
        base: the adapter's base.
        table: rows of the task's inputs.

    Raises:
        ArgumentError: the record is of another family than the base.
        DataError: a column that the task's settings name is missing, or a row cannot be converted.
    """
    if record.family != base.config.family:
        fix = f"load the base with family {record.family}"
        raise ArgumentError("the task is of another family", got=record.family, where=f"task {name}", fix=fix)
    family: Family[Any, Any] = FAMILIES.get(record.family)
    config = settings_of(name, record.task, family)
    rows = encoded(table, config, base, family)
    decides = {"family": record.family, "labels": record.labels, **family.decides(config, base)}
    task = Task(
        name=name,
        family=record.family,
        metric=config.metric,
        labels=list(record.labels),
        form=family.form(config),
        splits={"train": rows},
        fingerprint=fingerprint_of({**decides, "rows": rows.fingerprint}),
        record=record.model_dump(mode="json", exclude={"format"}),
    )
    return family.finish(task, config, base)


def settings_of(name: str, recorded: Any, family: Family[Any, Any]) -> TaskSettings:
    """Return recorded settings of a task as its family's class; its source is none."""
    raw = {**recorded, "name": name, "source": {"csv": {"train": "-", "test": "-"}}}
    return validate(family.task_settings, raw, f"heads/{name}.json", DataError)


def encoded(table: Table, config: TaskSettings, base: Base, family: Family[Any, Any]) -> Split:
    """Return rows as inputs, with placeholders as targets."""
    targets: Sequence[Any] = [_PLACEHOLDERS[family.form(config).kind]] * len(table)
    return Split(family.encode(table, targets, config, base), list(targets))
