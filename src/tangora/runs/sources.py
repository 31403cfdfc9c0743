"""What a run starts from: the base and the data of its tasks, by their fingerprints and sizes.

    RUN/cache/sources.json

A plan of jobs follows from the recipe and from this alone, so that another process can make the same plan without
loading any of it; what it does load is compared, since data that changed since would make other results under the same
keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import TangoraError
from tangora.support.files import digest, read_json, write_json
from tangora.support.seams import FAMILIES

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe
    from tangora.tasks import Base, Task

__all__ = ["Sources", "TaskFacts"]


@dataclass(frozen=True)
class TaskFacts:
    """What a plan depends on of one task.

    Attributes:
        fingerprint: of its rows, labels and preprocessing.
        rows: split -> how many.
        classes: whether its logits are over classes.
    """

    fingerprint: str
    rows: Mapping[str, int]
    classes: bool


@dataclass(frozen=True)
class Sources:
    """The base and the tasks of a run.

    Attributes:
        base: fingerprint of the base's weights.
        tasks: name -> facts, in the recipe's order.
    """

    base: str
    tasks: Mapping[str, TaskFacts]

    @classmethod
    def of(cls, base: Base, tasks: Sequence[Task]) -> Sources:
        """Describe what was loaded."""
        return cls(
            base.fingerprint,
            {
                task.name: TaskFacts(
                    task.fingerprint,
                    {name: len(split) for name, split in task.splits.items()},
                    FAMILIES.get(task.family).logits_over == "classes",
                )
                for task in tasks
            },
        )

    @classmethod
    def read(cls, run: Path, recipe: Recipe) -> Sources | None:
        """Read what `write` wrote for the same recipe; None if there is nothing of the kind."""
        try:
            raw = read_json(_path(run))
            if raw["recipe"] != _decides(recipe):
                return None
            tasks: dict[str, Any] = {name: TaskFacts(**facts) for name, facts in raw["tasks"].items()}
            return cls(raw["base"], tasks)
        except (TangoraError, KeyError, TypeError, AttributeError):
            return None

    def write(self, run: Path, recipe: Recipe) -> None:
        """Write them into the run's folder."""
        write_json(_path(run), {"recipe": _decides(recipe), **asdict(self)})


def _path(run: Path) -> Path:
    return run / "cache" / "sources.json"


def _decides(recipe: Recipe) -> str:
    """Hash of the part of a recipe that names base and data."""
    return digest(recipe.model_dump(mode="json", include={"base", "tasks", "seed"}))
