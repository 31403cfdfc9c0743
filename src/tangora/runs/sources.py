"""The sources of a run: fingerprints and sizes of its base, of the data of its tasks, and of adapters that are given.

    RUN/cache/sources.json

A plan of jobs follows from the recipe and the sources alone, so another process can make the same plan without loading
base or data. What it does load is compared with the sources, since changed data would give other results under the same
keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.config.places import below
from tangora.errors import TangoraError
from tangora.support.files import digest, read_json, write_json
from tangora.tasks.cuts import Cut, cuts

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe
    from tangora.tasks import Base, Task

__all__ = ["Sources", "TaskFacts"]


@dataclass(frozen=True)
class TaskFacts:
    """The facts about one task that a plan depends on.

    Attributes:
        fingerprint: of its rows, labels and preprocessing.
        rows: split -> number of rows.
        classes: whether its logits are over classes.
        cut: split -> the rows that lose tokens, without splits that have none.
    """

    fingerprint: str
    rows: Mapping[str, int]
    classes: bool
    cut: Mapping[str, Cut] = field(default_factory=dict)


@dataclass(frozen=True)
class Sources:
    """The base and the tasks of a run.

    Attributes:
        base: fingerprint of the base's weights.
        tasks: name -> facts, in the recipe's order.
        given: mode -> task -> hash of the existing adapter that is taken as its expert.
    """

    base: str
    tasks: Mapping[str, TaskFacts]
    given: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Base, tasks: Sequence[Task]) -> Sources:
        """Return the sources of a loaded base and loaded tasks."""
        return cls(
            base.fingerprint,
            {
                task.name: TaskFacts(
                    task.fingerprint,
                    {name: len(split) for name, split in task.splits.items()},
                    task.form.logits_over == "classes",
                    cuts(task),
                )
                for task in tasks
            },
        )

    @classmethod
    def read(cls, run: Path, recipe: Recipe) -> Sources | None:
        """Read the sources that `write` wrote for the same recipe; None if there are none."""
        try:
            raw = read_json(_path(run))
            if raw["recipe"] not in (_recipe_digest(recipe, run), _recipe_digest(recipe)):
                return None
            tasks: dict[str, Any] = {name: TaskFacts(**facts) for name, facts in raw["tasks"].items()}
            return cls(raw["base"], tasks, raw.get("given", {}))
        except (TangoraError, KeyError, TypeError, AttributeError):
            return None

    def write(self, run: Path, recipe: Recipe) -> None:
        """Write them into the run's folder."""
        write_json(_path(run), {"recipe": _recipe_digest(recipe, run), **asdict(self)})


def _path(run: Path) -> Path:
    return run / "cache" / "sources.json"


def _recipe_digest(recipe: Recipe, run: Path | None = None) -> str:
    """Return a hash of the part of a recipe that names base, data and tasks with given adapters.

    Where these adapters are does not count, but their contents in `Sources.given`. Without a run, the hash is that of
    earlier versions.
    """
    recipe = recipe if run is None else below(recipe, run)
    named = recipe.as_stated().model_dump(mode="json", include={"base", "tasks"})
    named["seed"] = recipe.first_seed  # rows are read once, whatever the other seeds
    given = {mode: sorted(of.experts) for mode, of in recipe.modes.items() if of.experts}
    return digest({**named, "experts": given} if given else named)
