"""Write a recipe with comments, for rows that were looked at. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tangora.support.printable import printable
from tangora.support.seams import FAMILIES
from tangora.support.yaml import dump

__all__ = ["DraftedTask", "are_numbers", "draft", "slug"]

_BASES = {
    "causal-lm": "a decoder language model",
    "image-classification": "a vision model",
    "text-classification": "an encoder of texts",
    "text-to-text": "an encoder-decoder such as T5",
    "token-classification": "an encoder of texts",
}
_LENGTHS = {
    "causal-lm": "most tokens of a row; a longer one is refused",
    "text-classification": "tokens of a text, or of a pair; what is longer is cut",
    "text-to-text": "tokens of a text; what is longer is cut",
    "text-zero-shot": "tokens of a text; what is longer is cut",
    "token-classification": "tokens of a row; a longer one is refused",
}
_NOTES = {
    "text": "the column of texts",
    "image": "the column of images",
    "tokens": "the column of lists of words",
    "tags": "the column of lists of tags, one for each word",
    "messages": "the column of conversations: lists of role and content",
    "prompt": "made of columns in braces",
    "target": "the answer, made of columns in braces",
    "problem": "labels are numbers with decimals",
}
_BATCH, _EPOCHS = 16, 3


@dataclass(frozen=True)
class DraftedTask:
    """A task of a recipe that is written.

    Attributes:
        name: of the task.
        source: its keys.
        keys: its other keys.
        rows: split -> number of rows.
        classes: name -> number of rows, if it has classes.
        why: the reason for the family.
    """

    name: str
    source: Mapping[str, Any]
    keys: Mapping[str, Any]
    rows: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    why: str = ""


def slug(text: str) -> str:
    """Return a text as a name in a recipe.

    >>> slug("my reviews (2)"), slug("…")
    ('my-reviews-2', 'task')
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._") or "task"


def draft(name: str, family: str, base: str, tasks: Sequence[DraftedTask], folder: Path) -> str:
    """Return a recipe in YAML with comments.

    Args:
        name: of the recipe.
        family: of its tasks.
        base: folder or Hub id of the base model.
        tasks: at least one.
        folder: that the file will be in: relative paths are written relative to it.
    """
    most = max((task.rows.get("train", 0) for task in tasks), default=0)
    steps = min(2000, max(50, _EPOCHS * most // _BATCH))
    lines = [
        f"# Written by tangora new. Every key: tangora recipe keys --family {family}",
        f"name: {_value(slug(name))}",
        "base:",
        f"  family: {family} # {tasks[0].why}",
        f"  model: {_value(_beside(base, folder))} # {_BASES.get(family, 'the base')}: a folder or a Hub id",
        *_length(family),
        "tasks:",
        *(line for task in tasks for line in _task(task, folder)),
        "lora:",
        "  r: 8 # rank; more for harder tasks",
        "  alpha: 16 # the update is alpha / r * B A",
        "  target_modules: all-linear # or names of layers, such as [query, value]",
        "training:",
        f"  steps: {steps} # about {_EPOCHS} times over the train rows, 50 to 2000 steps",
        f"  batch_size: {_BATCH}",
        f"  evaluate_every: {max(10, steps // 5)} # the weights of the best validation are kept",
        "modes:",
        "  lora: {} # learning_rate: 1e-3; another: training: {learning_rate: 3e-4}",
        "  # l-lora: {train: l-lora} # linearized adapters, which are made to be added",
        *_fusion(len(tasks)),
    ]
    return "\n".join(lines) + "\n"


def _length(family: str) -> list[str]:
    """Return the line of ``base.max_length``, with its default; none for a family that reads no tokens."""
    if family not in _LENGTHS:
        return []
    default = FAMILIES.get(family).base_settings.model_fields["max_length"].default
    return [f"  max_length: {default} # {_LENGTHS[family]}"]


def _task(task: DraftedTask, folder: Path) -> list[str]:
    source = {key: _placed(value, folder) for key, value in task.source.items()}
    rows = ", ".join(f"{count} {split}" for split, count in task.rows.items())
    lines = [f"  - name: {_value(task.name)}", f"    source: {_flow(source)} # {rows} rows"]
    for key, value in task.keys.items():
        note = _classes(task.classes) if key == "label" else _NOTES.get(key, "")
        lines.append(f"    {key}: {_value(value)}" + (f" # {note}" if note else ""))
    if are_numbers(task.classes):
        lines.append("    # problem: regression # if the number itself is to be predicted, not one of these classes")
    if any(isinstance(value, str) for key, value in task.source.items() if key not in ("sep", "encoding")):
        lines.append("    test_fraction: 0.2 # cut off by class and seed; rows of equal inputs stay together")
    if not any(isinstance(value, Mapping) and "validation" in value for value in task.source.values()):
        lines.append("    validation_fraction: 0.1 # cut from train")
    return lines


def are_numbers(classes: Mapping[str, int]) -> bool:
    """Return whether there are three classes or more, and each is a number: perhaps an amount, and no class.

    >>> are_numbers({"1": 9, "2": 7, "5": 8}), are_numbers({"0": 9, "1": 9}), are_numbers({"1": 9, "b": 9, "c": 9})
    (True, False, False)
    """
    return len(classes) > 2 and all(re.fullmatch(r"[+-]?\d+(\.\d*)?", name.strip()) for name in classes)


def _classes(counts: Mapping[str, int]) -> str:
    if not counts:
        return "the column of labels"
    listed = [f"{printable(' '.join(name.split()), most=40)} ({count})" for name, count in list(counts.items())[:6]]
    more = ", ..." if len(counts) > 6 else ""
    return f"{len(counts)} classes: {', '.join(listed)}{more}"


def _fusion(count: int) -> list[str]:
    if count == 1:
        return ["# fusion: for several tasks; tangora recipe keys fusion"]
    return [
        "fusion:",
        "  methods:",
        "    - {method: average}",
        "    - {method: task_arithmetic, weights: [0.3, 0.5, 0.7, 1.0]} # one of them is chosen on validation rows",
        "    - {method: mean_norm, weights: [1.0, 1.3]} # the sum, scaled to the mean norm of the adapters' changes",
        "    # keeps most, and trains for some minutes on rows without labels:",
        "    # - {method: task_arithmetic, name: polished, weights: 0.5, polish: {rank: 16, temperature: 2}}",
    ]


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _beside(path, folder) for key, path in value.items()}
    return _beside(value, folder)


def _beside(path: str, folder: Path) -> str:
    """Return an existing relative path, relative to the folder of the recipe."""
    if Path(path).is_absolute() or path.startswith("~") or not Path(path).exists():
        return path
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # on another drive
        return str(Path(path).absolute())


def _value(value: Any) -> str:
    """Return a value in YAML, in one line."""
    if isinstance(value, Mapping):
        return _flow(value)
    return dump({"v": value}).removeprefix("v: ").rstrip("\n")


def _flow(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_quoted(one)}" for key, one in values.items()) + "}"


def _quoted(value: Any) -> str:
    """Return a value inside braces: a text in quotes, if braces give one of its characters a meaning."""
    if isinstance(value, Mapping):
        return _flow(value)
    plain = _value(value)
    odd = isinstance(value, str) and plain == value and any(mark in value for mark in ",[]{}#:")
    return "'" + value.replace("'", "''") + "'" if odd else plain
