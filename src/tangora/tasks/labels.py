"""Convert a label column to class numbers and class names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import DataError
from tangora.support.files import reachable, read_json
from tangora.tasks.contract import Targets

if TYPE_CHECKING:
    from tangora.config.tasks import TaskSettings
    from tangora.tasks.sources import Table

__all__ = ["class_numbers", "class_targets", "given_names", "raw_labels"]


def class_targets(tables: Mapping[str, Table], config: TaskSettings) -> Targets:
    """Return class numbers as targets, with class names from the recipe or the data set.

    Raises:
        DataError: see `given_names` and `class_numbers`.
    """
    classes, numbers = class_numbers(tables, config, given_names(tables, config))
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


def _from_file(path: Path) -> list[str]:
    names = read_json(path, DataError).get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("the key 'labels' must list the class names", got=names, where=path, fix="correct the file")
    return names
