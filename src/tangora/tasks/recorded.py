"""Tasks from the records of adapters (``heads/<task>.json``), and rows that have inputs, and labels if they are read.

HeadRecord, BaseInfo ─▶ Base
HeadRecord, Base ─▶ Task
file of rows ─▶ Table ─▶ Split with placeholders as targets, or with the rows' classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.metadata import BaseInfo
from tangora.config.tasks import base_settings
from tangora.errors import ArgumentError, DataError, FileError, ModelError
from tangora.support.extras import require
from tangora.support.files import reachable
from tangora.support.seams import FAMILIES
from tangora.support.validation import did_you_mean, validate
from tangora.tasks.labels import Names, class_numbers
from tangora.tasks.load import load_base
from tangora.tasks.maps import NO_MAP
from tangora.tasks.rows import refuse_several_columns, table_of
from tangora.tasks.sources import IMAGES, Table, read_file
from tangora.tasks.values import Split, Task, fingerprint_of

if TYPE_CHECKING:
    from tangora.adapters.heads import HeadRecord
    from tangora.config.tasks import TaskSettings
    from tangora.support.machine import Machine
    from tangora.tasks.base import Base
    from tangora.tasks.contract import Answers, Family

__all__ = [
    "SUFFIXES",
    "chosen_record",
    "encoded",
    "kind_of",
    "read_inputs",
    "recorded_base",
    "recorded_task",
    "settings_of",
]

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
    "class_map": NO_MAP,
    "binary_map": NO_MAP,
    "number_map": NO_MAP,
}


def kind_of(path: str | Path) -> str | None:
    """Return the kind of a file of rows, by its suffix; None if it is unknown."""
    return _KINDS.get(Path(path).suffix.lower())


def read_inputs(path: Path, name: str) -> Table:
    """Read a file of rows, or a folder of images, which may be in folders of classes: a task's only column.

    Raises:
        DataError: it is missing, unreadable, empty, or of an unknown kind.
        MissingExtraError: the extra ``train`` is not installed.
    """
    require("train", purpose="reading data")
    kind = kind_of(path)
    if kind is None:
        fix = f"give a file that ends in {', '.join(SUFFIXES)}, or a folder of images"
        raise DataError("the kind of the file is unknown", got=path.name, where=f"task {name}", fix=fix)
    place = reachable(path, DataError, expand=True)
    if place.is_dir():
        images = sorted(str(file) for file in place.iterdir() if file.suffix.lower() in IMAGES)
        return table_of(images or read_file(kind, place).column("image"), str(path))
    table = read_file(kind, place)
    if not len(table):
        raise DataError("the file has no rows", where=path, fix="add rows")
    return table


def chosen_record(records: Mapping[str, HeadRecord], task: str | None, where: object) -> tuple[str, HeadRecord]:
    """Return the name and the record of a task; without a name, of the only one.

    Args:
        records: of an adapter, by task.
        task: a name, or None.
        where: the adapter's folder, for errors.

    Raises:
        ArgumentError: there is no record, none of this task, or several and no name.
    """
    if not records:
        what = "no task is recorded in heads/, so that nothing is known about rows and labels"
        fix = "give an adapter that Tangora has trained or fused; load one of peft alone with tangora.load_model"
        raise ArgumentError(what, where=where, fix=fix)
    if task is None and len(records) > 1:
        fix = f"choose one with task=, or --task: {', '.join(sorted(records))}"
        raise ArgumentError(f"{len(records)} tasks are recorded, and none is chosen", where=where, fix=fix)
    name = next(iter(records)) if task is None else task
    if name not in records:
        raise ArgumentError("no such task is recorded", got=name, where=where, fix=did_you_mean(name, sorted(records)))
    return name, records[name]


def recorded_base(record: HeadRecord, named: BaseInfo, machine: Machine, *, trust: bool, where: str) -> Base:
    """Load a base with the settings that a record has.

    What an adapter records may be somebody else's: it does not decide whether code runs, nor which model is loaded.

    Args:
        record: of a task.
        named: name and revision of the base.
        machine: the machine that computes.
        trust: run code from the base's repository.
        where: the argument that names the base, for errors.

    Raises:
        ArgumentError: nothing names the base.
        ModelError: it cannot be found or loaded.
    """
    if named.model is None:
        raise ArgumentError("nothing names the base", where=where, fix="give its folder or Hub id")
    fixed = {"model": named.model, "revision": named.revision, "trust_remote_code": trust}
    settings = base_settings({**record.base, "family": record.family, **fixed}, where)
    try:
        return load_base(settings, machine)
    except (ModelError, FileError) as cause:
        fix = "; or ".join(filter(None, [cause.fix, f"give the folder or Hub id of the base as {where}"]))
        got = {} if cause.got is None else {"got": cause.got}
        raise ModelError(f"the base cannot be loaded: {cause.what}", where=named.model, fix=fix, **got) from cause


def recorded_task(
    name: str, record: HeadRecord, base: Base, table: Table | None = None, *, labelled: bool = False
) -> Task:
    """Return the task that a record describes, with the rows of a table as its only split, ``train``.

    The targets of the rows are placeholders: a label column is not read, unless ``labelled``.

    Args:
        name: of the task.
        record: of an adapter of the task.
        base: the adapter's base.
        table: rows of the task's inputs; without any, the task has no splits.
        labelled: read the rows' labels, if answers are classes. Classes may be without a row.

    Raises:
        ArgumentError: the record is of another family than the base.
        DataError: a column that the task's settings name is missing, a row cannot be converted, or a label is no class.
    """
    if record.family != base.config.family:
        fix = f"load the base with family {record.family}"
        raise ArgumentError("the task is of another family", got=record.family, where=f"task {name}", fix=fix)
    family: Family[Any, Any] = FAMILIES.get(record.family)
    config = settings_of(name, record.task, family)
    read = labelled and family.form(config).kind == "classes"
    names = None if not read else config.labels if isinstance(config.labels, dict) else list(record.labels)
    splits = {} if table is None else {"train": encoded(table, config, base, family, names)}
    decides = {"family": record.family, "labels": record.labels, **family.decides(config, base)}
    prints = {split: rows.fingerprint for split, rows in splits.items()}
    task = Task(
        name=name,
        family=record.family,
        metric=config.metric,
        labels=list(record.labels),
        form=family.form(config),
        splits=splits,
        fingerprint=fingerprint_of({**decides, "rows": prints.get("train", "")}),
        record=record.model_dump(mode="json", exclude={"format"}),
    )
    return family.finish(task, config, base)


def settings_of(name: str, recorded: Any, family: Family[Any, Any]) -> TaskSettings:
    """Return recorded settings of a task as its family's class; its source is none."""
    raw = {**recorded, "name": name, "source": {"csv": {"train": "-", "test": "-"}}}
    return validate(family.task_settings, raw, f"heads/{name}.json", DataError)


def encoded(
    table: Table, config: TaskSettings, base: Base, family: Family[Any, Any], names: Names | None = None
) -> Split:
    """Return rows as inputs, with placeholders as targets; with the names of the classes, with the rows' labels.

    Raises:
        DataError: a column is missing, a row cannot be converted, a label is no class, or bare values stand for several
            columns.
    """
    targets: Sequence[Any] = [_PLACEHOLDERS[family.form(config).kind]] * len(table)
    if names is not None:
        targets = class_numbers({"train": table}, config, names, in_train=False)[1]["train"]
    inputs = family.encode(table, targets, config, base)
    refuse_several_columns(table)
    return replace(Split.of(inputs, list(targets)), labelled=names is not None)
