"""The section of a model card on how its artefact answers: code as its reader would write it. This imports no torch."""

from __future__ import annotations

import json
import shlex
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangora.errors import TangoraError
from tangora.support.markdown import as_text
from tangora.support.seams import FAMILIES

if TYPE_CHECKING:
    from tangora.adapters.heads import HeadRecord

__all__ = ["BASE", "FOLDER", "IMAGE", "returns_features", "usage"]

FOLDER, BASE, IMAGE, TEXT = "path/to/this/folder", "path/to/the/base", "path/to/an/image.png", "a text"
"""What a reader replaces in the code."""


def usage(records: Mapping[str, HeadRecord], base: str | None = None) -> str:
    """Return the section on prediction; empty without records.

    Args:
        records: task -> what prediction needs.
        base: a base that the code has to name; None if the artefact names it.
    """
    if not records:
        return ""
    task, record = next(iter(records.items()))
    tasks = f" Its tasks are {as_text(', '.join(records))}." if len(records) > 1 else ""
    named = ", ".join([json.dumps(FOLDER), f"task={json.dumps(task)}", *([f"base={json.dumps(base)}"] if base else [])])
    row = _row(record)
    rows = json.dumps([row], ensure_ascii=False)
    form = _form(record)
    shown = ", answers.probability[0]" if form is not None and form.kind == "classes" else ""
    code = (
        f"import tangora\n\npredict = tangora.predictor({named})\nanswers = predict({rows})\nprint(answers[0]{shown})\n"
    )
    parts = [
        "## How to use it",
        f"All that a prediction needs but the base is in this folder: how rows are read{_more(records)}.{tasks}",
        f"```python\n{code}```",
    ]
    if (line := _line(task, row, base)) is not None:
        parts.append(f"```console\n$ {line}\n```")
    if returns_features(record):
        code = f"import tangora\n\nmodel = tangora.load_model({named})\nlogits = model(**model.encode({rows}))\n"
        parts += ["As a network with the head of the task built in:", f"```python\n{code}```"]
    return "\n\n".join(parts)


def returns_features(record: HeadRecord) -> bool:
    """Return whether the network alone does not answer, since a head follows it; False if that is not known."""
    form = _form(record)
    return form is not None and form.logits_over != "tokens"


def _more(records: Mapping[str, HeadRecord]) -> str:
    """Return what the folder contains besides how rows are read; generated texts have no labels and no head."""
    return ", the labels, the head" if any(record.labels for record in records.values()) else ""


def _form(record: HeadRecord) -> Any:
    """Return the form of the answers; None if the family is not installed, or reads other settings."""
    if record.family not in FAMILIES:
        return None
    try:
        family: Any = FAMILIES.get(record.family)
        source = {"csv": {"train": "-", "test": "-"}}
        return family.form(family.task_settings.model_validate({**record.task, "name": "task", "source": source}))
    except (TangoraError, ValueError):
        return None


def _row(record: HeadRecord) -> Any:
    """Return a row as `tangora.predictor` takes it."""
    task, form = record.task, _form(record)
    if task.get("messages"):
        return [{"role": "user", "content": TEXT}]
    prompt = task.get("prompt")
    columns = _fields(prompt) if isinstance(prompt, str) else []
    values: dict[str, Any] = dict.fromkeys(columns, TEXT)
    if isinstance(task.get("text_pair"), str):
        values = {str(task.get("text")): TEXT, task["text_pair"]: TEXT}
    if isinstance(task.get("choices"), str):
        values[task["choices"]] = ["yes", "no"]
    sees = "image" in record.family
    if record.family in FAMILIES and hasattr(FAMILIES.get(record.family), "towers"):
        values[str(task.get("image"))], sees = IMAGE, True
    if len(values) > 1:
        return values
    if form is not None and form.kind == "tags":
        return TEXT.split()
    return IMAGE if sees else TEXT


def _fields(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name]
    except ValueError:
        return []


def _line(task: str, row: Any, base: str | None) -> str | None:
    """Return the command that answers the same row; None if no argument holds it."""
    if not isinstance(row, str):
        return None
    option = "--image" if row == IMAGE else "--text"
    more = f" --base {base}" if base else ""
    return f'tangora predict {FOLDER} --task {shlex.quote(task)}{more} {option} "{row}"'
