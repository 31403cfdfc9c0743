"""Between the stages: statistics of every expert's training rows, where a method of the recipe is given them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.config.recipe import Recipe
from tangora.errors import FileError
from tangora.progress import Progress

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.fusion.statistics import Statistics
    from tangora.methods import Statistic
    from tangora.tasks import Base, Task

__all__ = ["kinds_of", "make_statistics", "told"]

SPLIT = "train"  # coefficients are chosen on validation rows, and scores are of test rows


def kinds_of(recipe: Recipe, mode: str) -> list[Statistic]:
    """What the methods that a recipe compares in ``mode`` are given."""
    from tangora.methods import get

    methods = [get(entry.method) for entry in recipe.fusion.methods if mode in (entry.modes or [mode])]
    return sorted({method.statistics for method in methods if method.statistics is not None}, reverse=True)


def make_statistics(
    recipe: Recipe,
    run: Path,
    base: Base,
    tasks: list[Task],
    experts: Mapping[str, Mapping[str, Adapter]],
    progress: Progress,
) -> dict[str, dict[str, Statistics]]:
    """Collect what is missing, open the rest: mode -> task -> statistics, in ``RUN/statistics/<mode>/<task>``."""
    found: dict[str, dict[str, Statistics]] = {}
    for mode, of_mode in experts.items():
        if kinds := kinds_of(recipe, mode):
            for task in tasks:
                path = run / "statistics" / mode / f"{task.name}.safetensors"
                found.setdefault(mode, {})[task.name] = _one(
                    recipe, path, base, task, of_mode[task.name], kinds, progress
                )
    return found


def _one(
    recipe: Recipe, path: Path, base: Base, task: Task, adapter: Adapter, kinds: list[Statistic], progress: Progress
) -> Statistics:
    from tangora.evaluation.collection import collect_statistics
    from tangora.fusion.statistics import load

    settings = recipe.fusion.statistics
    wanted = {
        "kinds": kinds,
        "adapter": adapter.fingerprint,
        "task_fingerprint": task.fingerprint,
        "split": SPLIT,
        "rows": min(settings.rows, len(task.splits[SPLIT])),
        "seed": recipe.seed,
    }
    try:
        there = load(path)
        if there.about.model_dump(include=set(wanted)) == wanted and there.about.base.fingerprint == base.fingerprint:
            return there
    except FileError:  # missing or damaged
        pass
    made = collect_statistics(
        base,
        task,
        adapter,
        kinds=kinds,
        split=SPLIT,
        rows=settings.rows,
        seed=recipe.seed,
        batch_size=settings.batch_size,
        progress=progress,
    )
    return made.save(path, overwrite=True)


def told(statistics: Mapping[str, Mapping[str, Statistics]]) -> dict[str, Any]:
    """For ``run.json``: mode -> task -> which rows were used."""
    keys = {"kinds", "split", "rows", "labels"}
    return {
        mode: {task: one.about.model_dump(include=keys, exclude_none=True) for task, one in of_mode.items()}
        for mode, of_mode in statistics.items()
    }
