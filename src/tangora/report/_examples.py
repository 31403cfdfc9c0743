"""Examples of a split's rows for a page: texts, thumbnails, and the names of the classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tangora.errors import DataError
from tangora.support.seams import FAMILIES

if TYPE_CHECKING:
    from PIL.Image import Image

    from tangora.config.recipe import Recipe, TaskSettings
    from tangora.tasks.sources import Table

__all__ = ["Examples", "shown", "source"]

_SIDE = 40  # pixels of a thumbnail
_TEXT = (48, 240)  # characters of a text: at least (if the page is nearly full), and at most


@dataclass(frozen=True)
class Examples:
    """One task's rows as in its source; empty if the source cannot be read now.

    Attributes:
        classes: names in label order.
        tables: split -> rows, before preprocessing.
        note: the reason why there are none.
    """

    classes: list[str]
    tables: Mapping[str, Table] = field(default_factory=dict)
    note: str | None = None


def source(recipe: Recipe, task: TaskSettings, labels: Mapping[str, Mapping[int, int]], count: int) -> Examples:
    """Read the rows of ``task`` again, and return them if their ``labels`` (split -> row -> label) are unchanged."""
    from tangora.tasks.load import read_rows  # deferred: imports torch

    named = task.labels if isinstance(task.labels, list) else []
    classes = [named[i] if i < len(named) else f"class {i}" for i in range(count)]
    try:
        names, parts = read_rows(task, recipe.base.family, recipe.first_seed)
    except DataError as cause:
        return Examples(classes, note=f"{task.name}: its rows are not at hand now ({cause.what}); numbers stand in.")
    for split, expected in labels.items():
        targets = dict(enumerate(parts[split].targets))
        if len(names) != count or any(targets.get(row) != label for row, label in expected.items()):
            return Examples(classes, note=f"{task.name}: its rows have changed since the run; numbers stand in.")
    return Examples(names, {split: parts[split].table for split in labels})


def shown(table: Table, task: TaskSettings, family: str, rows: Sequence[int], budget: int) -> list[str | None]:
    """Return a text, or a picture as a data URL, for each of ``rows``; None once ``budget`` characters are spent."""
    length = min(max(budget // max(len(rows), 1), _TEXT[0]), _TEXT[1])
    examples = FAMILIES.get(family).examples(table.select(rows), task)
    made = (_shortened(row, length) if isinstance(row, str) else _thumbnail(row) for row in examples)
    kept: list[str | None] = []
    for value in made:
        budget -= len(value.encode()) + 4
        kept.append(value if budget >= 0 else None)
    return kept


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _thumbnail(picture: Image) -> str:
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
