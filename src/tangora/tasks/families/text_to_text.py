"""Texts answered in words by a sequence-to-sequence model such as T5."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangora.errors import DataError
from tangora.support.validation import did_you_mean
from tangora.tasks.base import Base, pretrained, processor
from tangora.tasks.families.zero_shot_text import tokenize

if TYPE_CHECKING:
    from tangora.config.recipe import BaseConfig, TaskConfig
    from tangora.tasks.sources import Table

__all__ = ["answers", "encode", "fields", "load", "targets"]


def load(config: BaseConfig) -> Base:
    """The whole model."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    backbone = pretrained(AutoModelForSeq2SeqLM, config)
    return Base(config, backbone, processor(AutoTokenizer, config), "")


def encode(table: Table, config: TaskConfig, base: Base) -> dict[str, list[Tensor] | Tensor]:
    """Token ids of the prompt, formatted with the row's columns."""
    prompt = config.prompt if config.prompt is not None else "{" + config.text + "}"
    texts = _formatted(table, prompt, "prompt", {})
    return {"input_ids": tokenize(base.processor, texts, base.config.max_length, table.place)}


def targets(table: Table, config: TaskConfig, labels: list[Any]) -> list[str]:
    """The texts to answer with; ``{label}`` is what ``labels`` holds for the row, other fields are columns."""
    return _formatted(table, config.target, "target", {"label": labels})


def answers(texts: list[str], table: Table, base: Base) -> list[Tensor]:
    """Token ids of the target texts.

    Raises:
        DataError: a text has more tokens than evaluation generates, so that no answer could match it.
    """
    most = base.config.max_new_tokens
    ids = tokenize(base.processor, texts, most + 1, table.place)
    for row, tokens in enumerate(ids):
        if len(tokens) > most:
            raise DataError(
                f"a target has more than {most} tokens",
                got=texts[row],
                where=table.place(row),
                fix="raise base.max_new_tokens",
            )
    return ids


def fields(template: str, key: str) -> list[str]:
    """Names between braces, each once.

    Raises:
        DataError: braces that do not match, or an empty pair.
    """
    try:
        found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as cause:
        raise DataError(f"not a format string ({cause})", got=template, where=key) from None
    names = [field.split(".")[0].split("[")[0] for field in found]
    if "" in names:
        raise DataError("a field needs a column's name", got=template, where=key, fix="write {column}, not {}")
    return list(dict.fromkeys(names))


def _formatted(table: Table, template: str, key: str, extra: dict[str, list[Any]]) -> list[str]:
    names = fields(template, key)
    columns = [name for name in names if name not in extra]
    for name in columns:
        if name not in table.columns:
            raise DataError(
                f"unknown column in {key}", got=name, where=table.where, fix=did_you_mean(name, table.columns)
            )
    values = {name: extra[name] if name in extra else table.column(name) for name in names}
    return [_fill(template, {k: v[i] for k, v in values.items()}, table.place(i)) for i in range(len(table))]


def _fill(template: str, row: dict[str, Any], where: str) -> str:
    if None in row.values():
        raise DataError("a value is missing", got=row, where=where, fix="drop the row")
    try:
        return template.format(**row)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as cause:
        raise DataError(f"a row does not fit the template {template!r} ({cause})", got=row, where=where) from cause
