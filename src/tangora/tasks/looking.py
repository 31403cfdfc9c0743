"""Look at a file of rows, and guess what task it is: the family, and the columns of inputs and targets.

A guess is only that. `tangora.tasks.load.read_rows` checks whether the rows can be used.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tangora.config.source import Source
from tangora.errors import DataError
from tangora.support.files import reachable
from tangora.support.seams import FAMILIES
from tangora.support.validation import validate
from tangora.tasks.recorded import SUFFIXES, kind_of
from tangora.tasks.sources import Table, read_whole

__all__ = ["Guess", "checked", "guess", "source_of"]

_HEAD = 1 << 16  # bytes that separator and encoding are guessed from
_TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "body",
    "message",
    "comment",
    "question",
    "title",
    "document",
    "tweet",
)
_LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "verdict",
    "sentiment",
    "intent",
    "topic",
    "rating",
    "stars",
    "score",
)
_PROMPTS = ("prompt", "instruction", "question", "input", "source")
_ANSWERS = ("completion", "response", "answer", "output", "target")


@dataclass(frozen=True)
class Guess:
    """What a file of rows is.

    Attributes:
        family: that fits its columns.
        keys: of the task, besides its name and source, such as ``{"text": "review", "label": "verdict"}``.
        columns: of the file.
        why: the reason for the family, in words.
    """

    family: str
    keys: dict[str, Any]
    columns: list[str] = field(default_factory=list)
    why: str = ""


def source_of(path: Path, test: Path | None = None) -> dict[str, Any]:
    """Return the keys of a source for a file or a folder of images, with the separator and encoding of its text.

    Args:
        path: of all rows, or of the train rows. A folder with the folders ``train`` and ``test`` has both splits.
        test: of the test rows.

    Raises:
        DataError: it does not exist, or is of an unknown kind.
    """
    kind = kind_of(path)
    for one in (path, *([test] if test is not None else [])):
        if not reachable(one, DataError, expand=True).exists():
            raise DataError("file not found", where=one, fix="check the path")
        if kind is None or kind_of(one) != kind:
            fix = f"give files of one kind that end in {', '.join(SUFFIXES)}, or a folder of images"
            raise DataError("the kind of the file is unknown, or another", got=one.name, where=one, fix=fix)
    files: Any = str(path)
    if test is not None:
        files = {"train": str(path), "test": str(test)}
    elif kind == "imagefolder" and all((path / split).is_dir() for split in ("train", "test")):
        splits = [split for split in ("train", "validation", "test") if (path / split).is_dir()]
        files = {split: str(path / split) for split in splits}
    return {str(kind): files, **(_form(path) if kind in ("csv", "jsonl") else {})}


def checked(found: Guess, source: Mapping[str, Any], task: str) -> tuple[list[str], dict[str, list[Any]]]:
    """Read the rows as a run would, and return class names, and split -> targets.

    Raises:
        DataError: rows cannot be used; the message names the first one.
        RecipeError: a key does not fit.
    """
    from tangora.tasks.load import read_rows  # deferred: imports torch

    chosen = FAMILIES.get(found.family).task_settings
    config = validate(chosen, {"name": task, "source": dict(source), **found.keys}, task)
    classes, parts = read_rows(config, found.family, seed=0)
    return classes, {split: list(part.targets) for split, part in parts.items()}


def _form(path: Path) -> dict[str, str]:
    """Return separator and encoding of a file of text, if they are not the defaults."""
    if path.suffix.lower() not in (".csv", ".jsonl", ".json"):
        return {}
    with path.expanduser().open("rb") as file:
        head = file.read(_HEAD)
    found, text = {}, ""
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        found["encoding"] = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        text = head.decode(found["encoding"], errors="replace")
    if path.suffix.lower() == ".csv" and (sep := _separator(text)) != ",":
        found = {"sep": sep, **found}
    return found


def _separator(text: str) -> str:
    """Return the character that cuts every line into the same number of columns, the largest one."""
    lines = text.splitlines()[:20]
    counts = {sep: {len(row) for row in csv.reader(lines, delimiter=sep)} for sep in (",", ";", "\t", "|")}
    same = {sep: max(numbers) for sep, numbers in counts.items() if len(numbers) == 1 and max(numbers) > 1}
    if same:
        return max(same, key=lambda sep: same[sep])
    header = {sep: len(next(csv.reader(lines[:1], delimiter=sep), [])) for sep in counts}
    return max(header, key=lambda sep: header[sep]) if lines else ","


def guess(
    source: Mapping[str, Any],
    task: str,
    *,
    family: str | None = None,
    text: str | None = None,
    label: str | None = None,
) -> Guess:
    """Return the family that fits the columns of a source, and the columns of inputs and targets.

    Args:
        source: from `source_of`.
        task: its name, for errors.
        family: that is wanted.
        text: column of the texts, prompts or images, if it is known.
        label: column of the labels or answers, if it is known.

    Raises:
        DataError: a column is unknown, or no family fits.
    """
    kind = next(iter(source))
    files = source[kind] if isinstance(source[kind], str) else source[kind]["train"]
    table = read_whole(Source.model_validate({**source, kind: files}), task)
    for column, option in ((text, "--text"), (label, "--label")):
        if column is not None:
            table.need(column, option)
    chosen = family or _family(table, kind, text, label)
    return _KEYS.get(chosen, _classified)(table, chosen, text, label)


def _family(table: Table, kind: str, text: str | None, label: str | None) -> str:
    columns = table.columns
    if kind in ("imagefolder", "npz") or text in ("image", "images") or (text is None and "image" in columns):
        return "image-classification"
    if text is None and "messages" in columns:
        return "causal-lm"
    if text is None and {"tokens", "tags"} <= set(columns):
        return "token-classification"
    if text is None and label is None and _is_prompted(table):
        return "causal-lm"
    if label is not None or _label(table, text, None) is not None:
        return "text-classification"
    if len([name for name in columns if _is_texts(table, name)]) == 1:
        return "causal-lm"
    fix = "name the columns with --text and --label, and the family with --family"
    raise DataError(f"no family fits the columns {', '.join(columns)}", where=table.where, fix=fix)


def _is_prompted(table: Table) -> bool:
    """Whether rows have a prompt and an answer, both texts, and no label."""
    prompt, answer = _first(_PROMPTS, table.columns, None), _first(_ANSWERS, table.columns, None)
    if prompt is None or answer is None or _first(_LABELS[:4], table.columns, None) is not None:
        return False
    return _is_texts(table, prompt) and _is_texts(table, answer)


def _classified(table: Table, family: str, text: str | None, label: str | None) -> Guess:
    """A text, or an image, and its label."""
    images = family.startswith("image-")
    named = _first(("image", "images"), table.columns, text) if images else text or _text(table, label)
    target = label or _label(table, named, label)
    if named is None or target is None:
        what = "image" if images else "text"
        fix = f"name its columns with --text and --label: it has {', '.join(table.columns)}"
        raise DataError(f"no column for {what if named is None else 'label'}", where=table.where, fix=fix)
    keys = {"image" if images else "text": named, "label": target}
    values = [value for value in table.column(target) if value is not None]
    numbers = _has_fractions(values) and family.endswith("-classification")
    if numbers:
        keys["problem"] = "regression"
    what = f"{'an image' if images else 'a text'} and a {'number' if numbers else 'label'} in every row"
    return Guess(family, keys, table.columns, what)


def _tagged(table: Table, family: str, text: str | None, label: str | None) -> Guess:
    keys = {"tokens": text or "tokens", "tags": label or "tags"}
    for key, column in keys.items():
        table.need(column, key)
    return Guess(family, dict(keys), table.columns, "a list of words and one of tags in every row")


def _prompted(table: Table, family: str, text: str | None, label: str | None) -> Guess:
    """A conversation, a prompt with its completion, or a plain text."""
    columns = table.columns
    if text in (None, "messages") and "messages" in columns and family == "causal-lm":
        return Guess(family, {"messages": "messages"}, columns, "a conversation in every row")
    prompt, answer = _first(_PROMPTS, columns, text), _first(_ANSWERS, columns, label)
    if text is not None and answer is None:
        answer = _label(table, text, None)
    if prompt is not None and answer is not None:
        keys = {"prompt": f"{{{prompt}}}", "target": f"{{{answer}}}"}
        return Guess(family, keys, columns, "a prompt and its completion in every row")
    plain = text or _text(table, label)
    if plain is None or family != "causal-lm":
        fix = f"name its columns with --text and --label: it has {', '.join(columns)}"
        raise DataError("no column for prompt and answer", where=table.where, fix=fix)
    return Guess(family, {"text": plain}, columns, "one plain text in every row")


_KEYS = {"causal-lm": _prompted, "text-to-text": _prompted, "token-classification": _tagged}


def _first(names: Sequence[str], columns: Sequence[str], given: str | None) -> str | None:
    if given is not None:
        return given
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def _is_texts(table: Table, column: str) -> bool:
    return any(isinstance(value, str) and value.strip() for value in table.column(column)[:100])


def _text(table: Table, label: str | None) -> str | None:
    """Return the column of a usual name, or the one with the longest texts."""
    others = [name for name in table.columns if name != label and _is_texts(table, name)]
    if (named := _first(_TEXTS, others, None)) is not None:
        return named
    return max(others, key=lambda name: sum(map(len, map(str, table.column(name)[:100]))), default=None)


def _has_fractions(values: Sequence[Any]) -> bool:
    return any(isinstance(value, float) and not value.is_integer() for value in values)


def _label(table: Table, text: str | None, given: str | None) -> str | None:
    """Return the column of a usual name, the one of few different values, or the only one of numbers with fractions."""
    text = text or _text(table, given)
    others = [name for name in table.columns if name != text]
    if (named := _first(_LABELS, others, given)) is not None:
        return named
    counts = {name: len({str(value) for value in table.column(name)}) for name in others}
    few = {name: count for name, count in counts.items() if 2 <= count <= max(2, len(table) // 5)}
    if few:
        return min(few, key=lambda name: few[name])
    measured = [name for name in others if _has_fractions(table.column(name))]
    return measured[0] if len(measured) == 1 else None
