"""Convert a label column to class numbers and class names."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import DataError
from tangora.support.files import reachable, read_json
from tangora.tasks.contract import Targets

if TYPE_CHECKING:
    from tangora.config.tasks import TaskSettings
    from tangora.tasks.sources import Table

__all__ = [
    "Names",
    "check_values",
    "checked_names",
    "class_numbers",
    "class_targets",
    "given_names",
    "names_or_values",
    "raw_labels",
]

Names = list[str] | dict[str, str]


def class_targets(tables: Mapping[str, Table], config: TaskSettings, *, prompted: bool = False) -> Targets:
    """Return class numbers as targets, with class names from the recipe or the data set.

    Args:
        tables: of every split.
        config: of the task.
        prompted: whether the model reads the names: then values that are numbers are no names.

    Raises:
        DataError: names are empty or nearly equal, or numbers where they are read; or see `class_numbers`.
    """
    names = names_or_values(tables, config)
    if names is None and prompted:
        _refuse_numbers(tables["train"], config)
    classes, numbers = class_numbers(tables, config, names)
    return Targets(classes, {split: list(values) for split, values in numbers.items()}, stratify=True)


def raw_labels(table: Table, column: str) -> list[Any]:
    """Return the label column.

    Raises:
        DataError: there is no such column, or a row has no label.
    """
    table.need(column, "label")
    values = table.column(column)
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and value != value):
            raise DataError("a label is missing", got=value, where=table.place(row, column))
        if not isinstance(value, (str, int, float)) or value in (float("inf"), -float("inf")):
            fix = "give one number or name per row"
            raise DataError(
                "a label is neither a number nor a name", got=value, where=table.place(row, column), fix=fix
            )
    return values


def given_names(tables: Mapping[str, Table], config: TaskSettings) -> list[str] | dict[str, str] | None:
    """Return the class names in the recipe or the data set; None if neither has any.

    Raises:
        DataError: ``labels_from`` is unreadable or has no list of names, or a name is a duplicate or empty.
    """
    names = config.labels
    if config.labels_from is not None:
        names = _from_file(reachable(config.labels_from, DataError, expand=True))
    if names is None:
        return tables["train"].class_names.get(config.label)
    if isinstance(names, list) and (len(set(names)) < len(names) or not all(n.strip() for n in names)):
        raise DataError("class names must differ and not be empty", got=names, where=f"task {config.name}, labels")
    return names


def names_or_values(tables: Mapping[str, Table], config: TaskSettings, *, decimals: bool = True) -> Names | None:
    """Return the class names as `given_names`; if there are none, check that the labels can be names.

    Args:
        tables: of every split.
        config: of the task.
        decimals: whether a number with decimals can be the name of a class.

    Raises:
        DataError: see `checked_names` and `check_values`.
    """
    names = checked_names(given_names(tables, config), f"task {config.name}, labels")
    if names is None:
        check_values(
            ((table, config.label, raw_labels(table, config.label)) for table in tables.values()), config, decimals
        )
    return names


def class_numbers(
    tables: Mapping[str, Table],
    config: TaskSettings,
    names: list[str] | dict[str, str] | None,
    *,
    in_train: bool = True,
) -> tuple[list[str], dict[str, list[int]]]:
    """Return the class names, and split -> the class number of each row.

    A list of names is in label order, and a row contains a number or a name. A mapping maps a row's value to a name.
    Without names, the sorted distinct values are the classes.

    Args:
        tables: of every split.
        config: of the task.
        names: of the classes.
        in_train: refuse a class without a row in train, as a head of it could not be trained.

    Raises:
        DataError: a label has no class, a class has no row in train, or there are fewer than two classes.
    """
    raw = {split: raw_labels(table, config.label) for split, table in tables.items()}
    if names is None:
        distinct = {value for values in raw.values() for value in values}
        names = {str(v): str(v) for v in sorted(distinct, key=lambda v: (isinstance(v, str), v))}
    classes = list(dict.fromkeys(names.values() if isinstance(names, dict) else names))
    numbers = {}
    for split, values in raw.items():
        table = tables[split]
        numbers[split] = [
            _number(value, names, classes, table.place(row, config.label)) for row, value in enumerate(values)
        ]
    _check_classes(classes, numbers["train"] if in_train else range(len(classes)), config)
    return classes, numbers


def _number(value: Any, names: list[str] | dict[str, str], classes: list[str], where: str) -> int:
    if isinstance(names, dict):
        if str(value) in names:
            return classes.index(names[str(value)])
        raise DataError("a label without a class name", got=value, where=where, fix=f"known: {', '.join(names)}")
    if isinstance(value, str) and value in classes:
        return classes.index(value)
    if isinstance(value, (int, float)) and int(value) == value and 0 <= value < len(classes):
        return int(value)
    fix = f"labels are 0 to {len(classes) - 1}, or one of {', '.join(classes[:8])}{'...' if len(classes) > 8 else ''}"
    raise DataError("a label is out of range", got=value, where=where, fix=fix)


def _check_classes(classes: list[str], train: Iterable[int], config: TaskSettings) -> None:
    if len(classes) < 2:
        raise DataError("a task needs at least 2 classes", got=classes, where=f"task {config.name}")
    used = set(train)
    empty = [name for number, name in enumerate(classes) if number not in used]
    if empty:
        fix = "add rows of this class, or remove it from labels"
        raise DataError("a class has no row in train", got=empty[0], where=f"task {config.name}", fix=fix)


def _refuse_numbers(table: Table, config: TaskSettings) -> None:
    """Refuse labels that are all numbers: prompts of "0" and "1" say nothing about the classes."""
    values = dict.fromkeys(map(str, table.column(config.label)))
    if all(value in ("True", "False") or _is_number(value) for value in values):
        some = [*values][:3]
        names = ", ".join(f"{value}: NAME" for value in some) + (", ..." if len(values) > len(some) else "")
        fix = f"name the classes, labels: {{{names}}}, or list the numbers there if they are the names"
        what = "the labels are numbers, and the model reads the names of the classes"
        raise DataError(what, got=some, where=table.place(0, config.label), fix=fix)


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _from_file(path: Path) -> list[str]:
    names = read_json(path, DataError).get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("the key 'labels' must list the class names", got=names, where=path, fix="correct the file")
    return names


def checked_names(names: Names | None, where: str) -> Names | None:
    """Return the names; refuse empty ones, and those that differ in case or white space only."""
    seen: dict[str, str] = {}
    for name in dict.fromkeys(names.values() if isinstance(names, dict) else names or ()):
        if not name.strip():
            raise DataError("a class name is empty", got=name, where=where, fix="name the class")
        if (other := seen.setdefault(_folded(name), name)) != name:
            what = "two class names differ in case or white space only"
            raise DataError(what, got=[other, name], where=where, fix="give different names, or one for both")
    if isinstance(names, list) and len(set(names)) < len(names):
        raise DataError("class names must differ", got=names, where=where, fix="give each once")
    return names


def check_values(
    columns: Iterable[tuple[Table, str, Sequence[Any]]], config: TaskSettings, decimals: bool = False
) -> None:
    """Refuse values that cannot be class names as they are: empty or nearly equal ones, fractions, numbers among names.

    Args:
        columns: table, column, and a value for each row, or a list of them.
        config: of the task.
        decimals: whether numbers with decimals are accepted.
    """
    seen: dict[str, tuple[Any, str]] = {}
    kinds: dict[bool, str] = {}
    for value, where in _each(columns):
        if not isinstance(value, (str, int, float)) or (isinstance(value, str) and not value.strip()):
            raise DataError("a label is missing or empty", got=value, where=where, fix="label the row, or drop it")
        if isinstance(value, float) and not decimals:
            fix = "map values to names with labels: {value: name}" + "; or problem: regression" * hasattr(
                config, "problem"
            )
            raise DataError("a number with decimals is no name of a class", got=value, where=where, fix=fix)
        kinds.setdefault(isinstance(value, str), where)
        if len(kinds) == 2:
            fix = f"name all classes, or none; the first of the other kind is at {kinds[not isinstance(value, str)]}"
            raise DataError("numbers and names among the labels", got=value, where=where, fix=fix)
        other, first = seen.setdefault(_folded(str(value)), (value, where))
        if other != value:
            fix = f"correct one of them; {other!r} is at {first}"
            raise DataError("two labels differ in case or white space only", got=value, where=where, fix=fix)


def _each(columns: Iterable[tuple[Table, str, Sequence[Any]]]) -> Iterator[tuple[Any, str]]:
    for table, column, values in columns:
        for row, value in enumerate(values):
            for one in value if isinstance(value, (list, tuple)) else [value]:
                yield one, table.place(row, column)


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()
