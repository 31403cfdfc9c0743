"""The adapters, the base and the rows of `tangora tune`: by name, from files and options, or from a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.adapter import Adapter, load
from tangora.adapters.heads import HeadRecord
from tangora.adapters.metadata import BaseInfo
from tangora.coefficients.own_rows import CHOOSING, SCORING, RowCut, cut_rows
from tangora.config.recipe import load_recipe
from tangora.errors import AdapterError, ArgumentError, DataError
from tangora.runs.runner import prepare
from tangora.support.extras import require
from tangora.support.files import reachable
from tangora.support.machine import Machine
from tangora.support.names import names_of, numbered
from tangora.support.seams import FAMILIES
from tangora.support.validation import validate
from tangora.tasks.load import LabelledRows, made_of
from tangora.tasks.recorded import SUFFIXES, kind_of, recorded_base
from tangora.tasks.sources import Table, read_file
from tangora.tasks.splits import sample

if TYPE_CHECKING:
    from tangora.config.tasks import TaskSettings
    from tangora.progress import Progress
    from tangora.tasks import Base, Task
    from tangora.tasks.contract import Family

__all__ = ["Bench", "Named", "Reading", "from_recipe", "from_rows", "named_adapters"]


@dataclass(frozen=True)
class Named:
    """The adapters of a command by name.

    Attributes:
        sources: name -> the adapter; or what was given, if it can only be read beside its base.
        given: name -> what was given.
        in_order: whether they were paired with the files in order, since no name or record tells.
    """

    sources: Mapping[str, Adapter | str]
    given: Mapping[str, str]
    in_order: bool

    @property
    def records(self) -> dict[str, HeadRecord]:
        """Name -> how the rows of its task are read, of adapters that record it."""
        found: dict[str, HeadRecord] = {}
        for name, source in self.sources.items():
            records = source.records if isinstance(source, Adapter) else {}
            task = source.metadata.task if isinstance(source, Adapter) else None
            if (record := records.get(name) or records.get(task or "")) is not None:
                found[name] = record
        return found


@dataclass(frozen=True)
class Reading:
    """How the files of rows are read.

    Attributes:
        files: task -> file.
        base: name or folder of the base; by default what the first adapter names.
        family: of the base; by default what the adapters record.
        metric: of every task; by default what the adapters record, or the family's.
        base_settings, task_settings: further keys; ``NAME.KEY`` is of one task.
        labels: number of choosing rows of each task.
        rows: the most rows of a file.
        seed: of the rows.
        trust: run code from the base's repository.
    """

    files: Mapping[str, Path]
    base: str | None
    family: str | None
    metric: str | None
    base_settings: Mapping[str, Any]
    task_settings: Mapping[str, Any]
    labels: int | None
    rows: int | None
    seed: int
    trust: bool

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return the settings of one task: those of all, and then its own.

        Raises:
            ArgumentError: a setting is of a task that has no rows.
        """
        common, own = dict[str, Any](), dict[str, Any]()
        for key, value in self.task_settings.items():
            task = next((one for one in self.files if key.startswith(f"{one}.")), None)
            if task is None and "." in key:
                fix = f"name one of {', '.join(self.files)}, or leave the name out"
                raise ArgumentError("there are no rows of this task", got=key, where="--task-set", fix=fix)
            if task is None:
                common[key] = value
            elif task == name:
                own[key.removeprefix(f"{task}.")] = value
        return {**common, **own}


@dataclass(frozen=True)
class Bench:
    """A loaded base, its tasks with rows, how these were cut, and the names of their splits."""

    base: Base
    tasks: Sequence[Task]
    cuts: Mapping[str, RowCut]
    choosing: str
    scoring: str


def named_adapters(given: Sequence[str], tasks: Sequence[str]) -> Named:
    """Read adapters, and name each by its task if there are rows of it.

    An adapter is named by ``NAME=ADAPTER``, by the task that it records, or by its folder. If none of these is a task
    with rows, and there is one adapter for each, they are in the order of the files.

    Args:
        given: ``ADAPTER`` or ``NAME=ADAPTER``, what `tangora.load` reads.
        tasks: names of those with rows.

    Raises:
        ArgumentError: two adapters have one name.
        FileError, AdapterError: an adapter cannot be read.
    """
    split = [_split(text) for text in given]
    sources = [_read(place) for _, place in split]
    recorded = [source.metadata.task if isinstance(source, Adapter) else None for source in sources]
    folders = names_of([place for _, place in split])
    names: list[str | None] = []
    for (name, _), task, folder in zip(split, recorded, folders, strict=True):
        implied = task if task in tasks and recorded.count(task) == 1 else folder if folder in tasks else None
        names.append(name or implied)
    in_order = not any(names) and len(given) == len(tasks) and len(given) > 0
    names = list(tasks) if in_order else names
    if twice := [name for name in names if name is not None and names.count(name) > 1]:
        fix = f"name the task's own: {twice[0]}=ADAPTER, and the other one otherwise"
        raise ArgumentError("two adapters of one name", got=twice[0], where="ADAPTER", fix=fix)
    taken = [name for name in names if name is not None]
    others = iter(
        numbered([*taken, *(f for f, name in zip(folders, names, strict=True) if name is None)])[len(taken) :]
    )
    final = [name if name is not None else next(others) for name in names]
    places = [place for _, place in split]
    return Named(dict(zip(final, sources, strict=True)), dict(zip(final, places, strict=True)), in_order)


def _split(text: str) -> tuple[str | None, str]:
    """Return name and adapter of ``NAME=ADAPTER``; the path of an adapter may contain ``=`` too."""
    name, equals, place = text.partition("=")
    if not equals or "/" in name or Path(text).exists():
        return None, text
    if not name or not place:
        fix = "for example sst2=adapters/sst2"
        raise ArgumentError("an adapter is ADAPTER or NAME=ADAPTER", got=text, where="ADAPTER", fix=fix)
    return name, place


def _read(place: str) -> Adapter | str:
    try:
        return load(place)
    except AdapterError:  # perhaps it needs its base; then it is read again, and refused with the reason
        return place


def from_recipe(
    named: Named, recipe: str, settings: Sequence[str], progress: Progress, labels: int | None, *, trust: bool
) -> Bench:
    """Load the base of a recipe, and those of its tasks that adapters are named by.

    Raises:
        ArgumentError: there is none.
    """
    chosen = load_recipe(recipe, settings, trust_remote_code=trust)
    tasks = [task for task in chosen.tasks if task.name in named.sources]
    if not tasks:
        fix = f"give TASK=ADAPTER for some of {', '.join(task.name for task in chosen.tasks)}"
        raise ArgumentError(
            "no adapter is of a task of the recipe", got=", ".join(named.sources), where="--recipe", fix=fix
        )
    base, loaded = prepare(chosen.model_copy(update={"tasks": tasks}), progress)
    cuts = {}
    for task in loaded:
        of = {name: len(rows) for name, rows in task.splits.items()}
        choosing = of["validation"] if labels is None else min(labels, of["validation"])
        cuts[task.name] = RowCut(sum(of.values()), choosing, of["test"], 0)
    return Bench(base, loaded, cuts, "validation", "test")


def from_rows(named: Named, reading: Reading, progress: Progress) -> Bench:
    """Load the base, read the files, and cut each into choosing and scoring rows.

    Raises:
        ArgumentError: nothing names the base or its family, adapters record different settings of the base, or a
            setting is unknown.
        DataError: a file cannot be read, lacks a column, or has too few rows.
    """
    require("train", purpose="reading data")
    family, settings = _base_of(named, reading)
    machine = Machine.resolve("auto", "float32", "auto")
    machine.use_threads()
    progress.begin("load base and rows", 1 + len(reading.files))
    record = HeadRecord(family=family, labels=[], base=settings)
    base = recorded_base(record, _base_named(named, reading.base), machine, trust=reading.trust, where="--base")
    progress.advance(detail=base.config.model)
    tasks, cuts = [], {}
    for name, path in reading.files.items():
        task = _task(name, path, named.records.get(name), base, reading)
        task, cuts[name] = cut_rows(task, "train", reading.labels, reading.seed)
        tasks.append(task)
        progress.advance(detail=name)
    progress.end()
    return Bench(base, tasks, cuts, CHOOSING, SCORING)


def _base_of(named: Named, reading: Reading) -> tuple[str, dict[str, Any]]:
    """Return the family of the base and its settings."""
    records = list(named.records.items())
    for name, record in records[1:]:
        first, one = records[0]
        if (record.family, record.base) != (one.family, one.base):
            what = f"{first} and {name} were trained with other settings of the base"
            fix = "give adapters that read their inputs in the same way, or --recipe"
            raise ArgumentError(what, got=f"{one.base} and {record.base}", where="ADAPTER", fix=fix)
    recorded = records[0][1] if records else None
    family = reading.family or (recorded.family if recorded is not None else None)
    if family is None:
        fix = f"give --family: {', '.join(FAMILIES)}"
        raise ArgumentError("no adapter says how rows are read", where="--family", fix=fix)
    if recorded is not None and recorded.family != family:
        fix = "leave --family out"
        raise ArgumentError(
            f"the adapters were trained for family {recorded.family}", got=family, where="--family", fix=fix
        )
    return family, {**(recorded.base if recorded is not None else {}), **reading.base_settings}


def _base_named(named: Named, base: str | None) -> BaseInfo:
    if base is not None:
        return BaseInfo(model=base)
    infos = (source.metadata.base for source in named.sources.values() if isinstance(source, Adapter))
    return next((info for info in infos if info.model is not None), BaseInfo())


def _task(name: str, path: Path, record: HeadRecord | None, base: Base, reading: Reading) -> Task:
    """Return a task with the rows of a file as its split ``train``."""
    family: Family[Any, Any] = FAMILIES.get(base.config.family)
    config = _settings(name, record, family, reading)
    table = _table(path, name)
    if reading.rows is not None:
        table = table.select(sample(len(table), reading.rows, reading.seed))
    targets = family.targets({"train": table}, config)
    return made_of(config, base, targets.classes, {"train": LabelledRows(table, targets.of_split["train"])})


def _settings(name: str, record: HeadRecord | None, family: Family[Any, Any], reading: Reading) -> TaskSettings:
    """Return a task's settings: as its adapter records them, with the metric and the options' changes."""
    raw: dict[str, Any] = dict(record.task) if record is not None else {}
    if record is not None and record.labels:
        raw["labels"] = list(record.labels)
    if reading.metric is not None:
        raw = {**raw, "metric": reading.metric, "metrics": None}
    raw |= reading.settings_of(name)
    place = {"csv": {"train": "-", "test": "-"}}  # the file is read apart: it has no splits
    return validate(family.task_settings, {**raw, "name": name, "source": place}, f"--data {name}", ArgumentError)


def _table(path: Path, name: str) -> Table:
    kind = kind_of(path)
    if kind is None:
        fix = f"give a file that ends in {', '.join(SUFFIXES)}, or a folder with one folder of images per class"
        raise DataError("the kind of the file is unknown", got=os.fspath(path), where=f"task {name}", fix=fix)
    table = read_file(kind, reachable(path, DataError, expand=True))
    if not len(table):
        raise DataError("the file has no rows", where=path, fix="add rows")
    return table
