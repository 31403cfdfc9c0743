"""Stage one: an adapter for every mode and task, trained once for a given configuration, base and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.config.recipe import FinetuneConfig, Recipe
from tangora.errors import AdapterError
from tangora.modes.contract import Bench, mode_of
from tangora.modes.stage import stage_key
from tangora.progress import Progress
from tangora.support.files import read_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, Task

__all__ = ["Job", "jobs", "make_experts"]


@dataclass(frozen=True)
class Job:
    """One training: an adapter of one task, or of several tasks at once.

    Attributes:
        mode: the recipe's name for it.
        tasks: what is trained on.
        config: the mode, resolved.
        home: the folder of the mode's adapters, one each task.
        stage: hash of everything that decides the adapters.
    """

    mode: str
    tasks: tuple[str, ...]
    config: FinetuneConfig
    home: Path
    stage: str

    @property
    def folders(self) -> dict[str, Path]:
        """Task -> folder of its adapter."""
        return {task: self.home / task for task in self.tasks}

    @property
    def done(self) -> bool:
        """Whether the adapters of exactly this job are on disk, whole (outputs appear atomically)."""
        return all(_stage(folder) == self.stage for folder in self.folders.values())


def _stage(folder: Path) -> object:
    try:
        return read_json(folder / "tangora.json").get("stage")
    except AdapterError:
        return None


def jobs(recipe: Recipe, run: Path, base: Base, tasks: list[Task]) -> Iterator[Job]:
    """Every training of the recipe, modes outermost; a joint mode has one for all tasks."""
    for mode in recipe.modes:
        config = recipe.finetune_config(mode)
        for group in [tasks] if mode_of(config).joint else [[task] for task in tasks]:
            names = tuple(task.name for task in group)
            yield Job(mode, names, config, run / "adapters" / mode, stage_key(base, group, config))


def make_experts(
    recipe: Recipe, run: Path, base: Base, tasks: list[Task], progress: Progress
) -> dict[str, dict[str, Adapter]]:
    """Train what is missing, load the rest: mode -> task -> adapter."""
    from tangora.adapters.adapter import load  # deferred: torch

    by_name = {task.name: task for task in tasks}
    experts: dict[str, dict[str, Adapter]] = {}
    for job in list(jobs(recipe, run, base, tasks)):
        if not job.done:
            _train(job, run, base, [by_name[name] for name in job.tasks], progress)
        experts.setdefault(job.mode, {}).update({task: load(folder) for task, folder in job.folders.items()})
    return experts


def _train(job: Job, run: Path, base: Base, tasks: list[Task], progress: Progress) -> None:
    from tangora.modes.finetuning import train_to  # deferred: torch

    name = "+".join(job.tasks)
    progress.begin(f"{job.mode} · {name}", job.config.training.steps)
    bench = Bench(
        base,
        run / "cache" / "training" / job.stage,
        run / "logs" / job.mode / name,
        lambda step, total, loss: progress.update(step, f"loss {loss:.3f}"),
    )
    train_to(bench, tasks, job.config, job.folders, overwrite=True, about={"stage": job.stage})
    progress.end()
