"""What the rows of a split look like, for a page: texts, small pictures, and the names of the classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tangora.errors import DataError

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe, TaskConfig
    from tangora.tasks.sources import Table

__all__ = ["Examples", "shown", "source"]

_SIDE = 40  # pixels of a thumbnail
_TEXT = (48, 240)  # characters of a text: at least, where the page is nearly full; at most


@dataclass(frozen=True)
class Examples:
    """One task's rows as they are in its source; empty where the source cannot be read now.

    Attributes:
        classes: names in label order.
        tables: split -> rows, before preprocessing.
        note: why there are none.
    """

    classes: list[str]
    tables: Mapping[str, Table] = field(default_factory=dict)
    note: str | None = None


def source(recipe: Recipe, task: TaskConfig, labels: Mapping[str, Mapping[int, int]], count: int) -> Examples:
    """The rows of ``task`` read again, if they are still those whose ``labels`` (split, row -> label) are known."""
    from tangora.tasks.load import read_parts

    named = task.labels if isinstance(task.labels, list) else []
    classes = [named[i] if i < len(named) else f"class {i}" for i in range(count)]
    try:
        found, parts = read_parts(task, recipe.base.family, recipe.seed)
    except DataError as cause:
        return Examples(classes, note=f"{task.name}: its rows are not at hand now ({cause.what}); numbers stand in.")
    for split, known in labels.items():
        targets = dict(enumerate(parts[split].targets))
        if len(found) != count or any(targets.get(row) != label for row, label in known.items()):
            return Examples(classes, note=f"{task.name}: its rows have changed since the run; numbers stand in.")
    return Examples(found, {split: parts[split].table for split in labels})


def shown(table: Table, task: TaskConfig, family: str, rows: Sequence[int], budget: int) -> list[str | None]:
    """A text, or a picture as a data URL, for each of ``rows``; None once ``budget`` characters are spent."""
    picked = table.select(rows)
    if family != "image-zero-shot":
        length = min(max(budget // max(len(rows), 1), _TEXT[0]), _TEXT[1])
        made = (_shortened(text, length) for text in picked.column(task.text))
    else:
        made = (_thumbnail(row[task.image], picked.place(i)) for i, row in enumerate(picked.rows([task.image])))
    kept: list[str | None] = []
    for value in made:
        budget -= len(value.encode()) + 4
        kept.append(value if budget >= 0 else None)
    return kept


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _thumbnail(value: Any, where: str) -> str:
    from tangora.tasks.families.zero_shot_image import rgb

    picture = rgb(value, where)
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
