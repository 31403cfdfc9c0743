"""Format texts from the columns of a row: prompts and target texts."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.errors import DataError
from tangora.support.validation import did_you_mean
from tangora.tasks import labels as naming
from tangora.tasks.contract import Targets

if TYPE_CHECKING:
    from tangora.config.language import LanguageTask
    from tangora.config.tasks import TaskConfig
    from tangora.tasks.sources import Table

_HasTarget: TypeAlias = "TaskConfig | LanguageTask"

__all__ = ["fields", "filled", "formatted", "prompts", "text_targets"]


def prompts(table: Table, config: TaskConfig) -> list[str]:
    """Return the input text of every row: ``prompt`` formatted with its columns, or the text column.

    Raises:
        DataError: a column is unknown, or a row does not fit the template.
    """
    prompt = config.prompt if config.prompt is not None else "{" + config.text + "}"
    return filled(table, formatted(table, prompt, "prompt", {}), "a prompt is empty")


def text_targets(tables: Mapping[str, Table], config: _HasTarget) -> Targets:
    """Return the target texts: ``target`` with the class name, or the raw value, for ``{label}``.

    The rows have classes if the target contains a label, and labels are neither fractions nor formatted as numbers.

    Raises:
        DataError: a column is unknown, a label has no class, or a row does not fit the template.
    """
    classes, labels = _labels(tables, config)
    texts = {
        split: formatted(table, config.target, "target", {"label": labels.get(split, [])})
        for split, table in tables.items()
    }
    texts = {split: filled(tables[split], listed, "a row has no answer") for split, listed in texts.items()}
    return Targets(classes, texts, stratify=bool(classes))


def filled(table: Table, texts: list[str], what: str) -> list[str]:
    """Return the texts of the rows.

    Raises:
        DataError: one is empty; ``what`` says so.
    """
    for row, text in enumerate(texts):
        if not text.strip():
            raise DataError(what, got=text, where=table.place(row), fix="drop the row")
    return texts


def _labels(tables: Mapping[str, Table], config: _HasTarget) -> tuple[list[str], dict[str, list[Any]]]:
    """Return class names, and the value of ``{label}`` in every row."""
    names = naming.given_names(tables, config)
    if "label" not in fields(config.target, "target"):
        return [], {}
    if names is None:
        raw = {split: naming.raw_labels(table, config.label) for split, table in tables.items()}
        if any(isinstance(value, float) for values in raw.values() for value in values):
            return [], raw
        if "{label}" not in config.target:  # a number format: a grade, not a class
            return [], raw
    names = naming.names_or_values(tables, config)
    classes, numbers = naming.class_numbers(tables, config, names)
    return classes, {split: [classes[i] for i in values] for split, values in numbers.items()}


def fields(template: str, key: str) -> list[str]:
    """Return the names between braces, each once.

    Raises:
        DataError: braces do not match, or a pair is empty.
    """
    try:
        parsed = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as cause:
        raise DataError(f"not a format string ({cause})", got=template, where=key) from None
    names = [field.split(".")[0].split("[")[0] for field in parsed]
    if "" in names:
        raise DataError("a field needs a column's name", got=template, where=key, fix="write {column}, not {}")
    return list(dict.fromkeys(names))


def formatted(table: Table, template: str, key: str, extra: Mapping[str, list[Any]]) -> list[str]:
    """Return a template filled with the columns of each row.

    Args:
        table: the rows.
        template: a format string with names of columns between braces.
        key: the template's key in a recipe.
        extra: further columns, which take precedence.

    Raises:
        DataError: a column is unknown, or a row does not fit the template.
    """
    names = fields(template, key)
    columns = [name for name in names if name not in extra]
    for name in columns:
        if name not in table.columns:
            fix = f"{did_you_mean(name, table.columns)}. The task's key {key}, which is {template!r}, names columns"
            raise DataError(f"unknown column in {key}", got=name, where=table.where, fix=fix)
    values = {name: extra[name] if name in extra else table.column(name) for name in names}
    return [_fill(template, {k: v[i] for k, v in values.items()}, table.place(i)) for i in range(len(table))]


def _fill(template: str, row: dict[str, Any], where: str) -> str:
    if None in row.values():
        raise DataError("a value is missing", got=row, where=where, fix="drop the row")
    try:
        return template.format(**row)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as cause:
        raise DataError(f"a row does not fit the template {template!r} ({cause})", got=row, where=where) from cause
