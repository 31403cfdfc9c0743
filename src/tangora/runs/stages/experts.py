"""Stage one: an adapter per mode and task, made once for a given configuration, base and data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.config.recipe import FinetuneConfig, Recipe
from tangora.errors import FileError
from tangora.progress import Progress
from tangora.support.files import digest, read_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, Task

__all__ = ["Job", "jobs", "make_experts"]

CODE = "finetune-1"  # raise it when the same configuration would train another adapter


@dataclass(frozen=True)
class Job:
    """One adapter to make.

    Attributes:
        stage: hash of everything that decides the adapter.
    """

    mode: str
    task: str
    config: FinetuneConfig
    folder: Path
    stage: str

    @property
    def done(self) -> bool:
        """Whether the adapter of exactly this job is on disk, whole (outputs appear atomically)."""
        try:
            return read_json(self.folder / "tangora.json").get("stage") == self.stage
        except FileError:
            return False


def jobs(recipe: Recipe, run: Path, base: Base, tasks: list[Task]) -> Iterator[Job]:
    """Every (mode, task) of the recipe, modes outermost."""
    for mode in recipe.modes:
        config = recipe.finetune_config(mode)
        decides = config.model_dump(mode="json", exclude={"training": {"report_to", "workers", "checkpoint_every"}})
        for task in tasks:
            stage = digest([CODE, decides, base.fingerprint, task.name, task.fingerprint])
            yield Job(mode, task.name, config, run / "adapters" / mode / task.name, stage)


def make_experts(
    recipe: Recipe, run: Path, base: Base, tasks: list[Task], progress: Progress
) -> dict[str, dict[str, Adapter]]:
    """Train what is missing, load the rest: mode -> task -> adapter."""
    from tangora.adapters.adapter import load
    from tangora.modes.finetuning import finetune

    by_name = {task.name: task for task in tasks}
    experts: dict[str, dict[str, Adapter]] = {}
    listed = list(jobs(recipe, run, base, tasks))
    for job in listed:
        if not job.done:
            total = job.config.training.steps
            progress.begin(f"{job.mode} · {job.task}", total)
            scratch = run / "cache" / "training" / job.stage
            finetune(
                base,
                by_name[job.task],
                job.config,
                out=job.folder,
                scratch=scratch,
                logs=run / "logs" / job.mode / job.task,
                stage=job.stage,
                overwrite=True,
                on_step=lambda step, total, loss: progress.update(step, f"loss {loss:.3f}"),
            )
            shutil.rmtree(scratch, ignore_errors=True)
            progress.end()
        experts.setdefault(job.mode, {})[job.task] = load(job.folder)
    return experts
