"""Targets of classification: labels of rows and of words, checked row by row; this needs no model.

rows, settings ── names ──▶ class names: given, those of the data set, or the distinct values
               └─ values ─▶ numbers of classes, sets of labels, numbers, or names of tags
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.errors import DataError
from tangora.tasks.contract import Targets
from tangora.tasks.labels import check_values, checked_names, class_numbers, given_names, names_or_values

if TYPE_CHECKING:
    from tangora.tasks.classification.settings import ClassifierSettings, RowSettings, TokenSettings
    from tangora.tasks.sources import Table

__all__ = ["row_targets", "tag_targets"]


def row_targets(tables: Mapping[str, Table], config: RowSettings) -> Targets:
    """Return the targets of a task with one target per row.

    Raises:
        DataError: a column is missing; a row has no valid target; names are empty or nearly equal; a class or label has
            no row in train, unless the head is a checkpoint's.
    """
    if config.problem == "regression":
        return Targets([], {split: _numbers(table, config) for split, table in tables.items()}, stratify=False)
    if config.problem == "multi":
        return _label_sets(tables, config)
    names = names_or_values(tables, config, decimals=False)
    classes, numbers = class_numbers(tables, config, names, in_train=config.head == "new")
    return Targets(classes, {split: list(values) for split, values in numbers.items()}, stratify=True)


def tag_targets(tables: Mapping[str, Table], config: TokenSettings) -> Targets:
    """Return the names of the tags of every row.

    Raises:
        DataError: as `row_targets`; or a row has not as many tags as words, or none.
    """
    named = config.model_copy(update={"label": config.tags})
    raw = {split: _tag_lists(table, config) for split, table in tables.items()}
    classes, number = _numbering(tables, named, raw, config.tags)
    if config.lost == "outside" and config.outside not in classes:
        what, fix = "the tag of words that are cut off is no tag of the task", f"choose one of {', '.join(classes)}"
        raise DataError(what, got=config.outside, where=f"task {config.name}, outside", fix=fix)
    of_split = {
        split: [
            [classes[number(v, tables[split].place(row, config.tags))] for v in tags] for row, tags in enumerate(rows)
        ]
        for split, rows in raw.items()
    }
    _refuse_unused(classes, {tag for tags in of_split["train"] for tag in tags}, "tag", config)
    return Targets(classes, of_split, stratify=False)


def _numbers(table: Table, config: RowSettings) -> list[float]:
    table.need(config.label, "label")
    numbers = []
    for row, value in enumerate(table.column(config.label)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            what, fix = "a label is missing, or not a number", "give finite numbers, or set problem: single"
            raise DataError(what, got=value, where=table.place(row, config.label), fix=fix)
        numbers.append(float(value))
    return numbers


def _label_sets(tables: Mapping[str, Table], config: RowSettings) -> Targets:
    """Return the sorted numbers of every row's labels."""
    of_split: dict[str, list[Any]]
    if config.label_columns is not None:
        classes = list(config.labels or config.label_columns)
        if len(classes) != len(config.label_columns):
            what = f"{len(config.label_columns)} label_columns need as many names"
            raise DataError(what, got=classes, where=f"task {config.name}, labels")
        checked_names(classes, f"task {config.name}, labels")
        of_split = {split: _marked(table, config.label_columns) for split, table in tables.items()}
    else:
        raw = {split: _label_lists(table, config) for split, table in tables.items()}
        classes, number = _numbering(tables, config, raw, config.label)
        of_split = {
            split: [
                sorted({number(value, tables[split].place(row, config.label)) for value in values})
                for row, values in enumerate(rows)
            ]
            for split, rows in raw.items()
        }
    _refuse_unused(classes, {classes[i] for numbers in of_split["train"] for i in numbers}, "label", config)
    return Targets(classes, of_split, stratify=False)


def _marked(table: Table, columns: Sequence[str]) -> list[Any]:
    """Return the numbers of the columns that have a 1 in each row."""
    rows: list[list[int]] = [[] for _ in range(len(table))]
    for index, column in enumerate(columns):
        table.need(column, "label_columns")
        for row, value in enumerate(table.column(column)):
            if value not in (0, 1):  # True and 1.0 are equal to 1
                what = "a label column has 1 for rows with the label, and 0 for the others"
                raise DataError(what, got=value, where=table.place(row, column), fix="correct the row")
            if value:
                rows[row].append(index)
    return rows


def _label_lists(table: Table, config: RowSettings) -> list[list[Any]]:
    """Return the values of every row's labels."""
    table.need(config.label, "label")
    rows: list[list[Any]] = []
    for row, value in enumerate(table.column(config.label)):
        if isinstance(value, str) and config.separator is not None:
            rows.append([part.strip() for part in value.split(config.separator)] if value.strip() else [])
        elif isinstance(value, (list, tuple)):
            rows.append(list(value))
        else:
            fix = "give lists (JSON lines, Parquet), a separator between names, or label_columns"
            where = table.place(row, config.label)
            raise DataError("the labels of a row are a list of names or numbers", got=value, where=where, fix=fix)
    return rows


def _tag_lists(table: Table, config: TokenSettings) -> list[list[Any]]:
    table.need(config.tokens, "tokens")
    table.need(config.tags, "tags")
    rows: list[list[Any]] = []
    for row, (words, tags) in enumerate(zip(table.column(config.tokens), table.column(config.tags), strict=True)):
        for column, value in ((config.tokens, words), (config.tags, tags)):
            if not isinstance(value, (list, tuple)) or not value:
                fix = "give lists, in JSON lines or Parquet, and drop empty rows"
                raise DataError("a row has no list", got=value, where=table.place(row, column), fix=fix)
        if len(words) != len(tags):
            got = f"{len(words)} words and {len(tags)} tags"
            raise DataError("a row needs one tag for each word", got=got, where=table.place(row), fix="correct the row")
        rows.append(list(tags))
    return rows


def _numbering(
    tables: Mapping[str, Table], config: ClassifierSettings, raw: Mapping[str, Sequence[Sequence[Any]]], column: str
) -> tuple[list[str], Callable[[Any, str], int]]:
    """Return class names, and a function for the number of a value, which is given the value's place for errors."""
    names = checked_names(given_names(tables, config), f"task {config.name}, labels")
    if names is None:
        listed = [(tables[split], column, rows) for split, rows in raw.items()]
        check_values(listed, config)
        distinct = {value for rows in raw.values() for values in rows for value in values}
        names = [str(value) for value in sorted(distinct)]
        numbers = {value: i for i, value in enumerate(sorted(distinct))}
        return names, lambda value, _: numbers[value]
    classes = list(dict.fromkeys(names.values())) if isinstance(names, dict) else names

    def number(value: Any, where: str) -> int:
        name = names.get(str(value)) if isinstance(names, dict) else value
        if isinstance(name, str) and name in classes:
            return classes.index(name)
        if isinstance(names, list) and type(value) is int and 0 <= value < len(classes):
            return value
        known = ", ".join(list(names)[:8]) + (", …" if len(names) > 8 else "")
        raise DataError("an unknown label", got=value, where=where, fix=f"correct it, or add it to labels: {known}")

    return classes, number


def _refuse_unused(classes: Sequence[str], used: set[str], what: str, config: ClassifierSettings) -> None:
    """Refuse a class without a row in train, unless the head is given."""
    unused = [name for name in classes if name not in used]
    if not classes:
        raise DataError(f"there is no {what}", where=f"task {config.name}", fix="give labels")
    if unused and config.head == "new":
        fix = f"add rows with this {what}, or remove it from labels"
        raise DataError(f"a {what} has no row in train", got=unused[0], where=f"task {config.name}", fix=fix)
