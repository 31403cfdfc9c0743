"""Adapters of one task: made once for a given configuration, base and data.

RUN/adapters/<mode>/<task>/
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tangora.config.recipe import FinetuneConfig, Recipe
from tangora.errors import FileError
from tangora.modes.finetuning import finetune
from tangora.runs.jobs import Job, Resources
from tangora.support.files import digest, read_json

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.sources import Sources

__all__ = ["ExpertJob", "expert_jobs", "experts_of"]

CODE = "finetune-1"  # raise it when the same configuration would train another adapter


@dataclass(frozen=True)
class ExpertJob(Job):
    """Train the adapter of one task in one mode, or go on with a training that was stopped.

    Attributes:
        mode: of the recipe.
    """

    kind: ClassVar[str] = "expert"
    stage: ClassVar[str] = "fine-tune"
    mode: str

    @property
    def label(self) -> str:
        """Mode and task."""
        return f"{self.mode} · {'+'.join(self.tasks)}"

    def run(self, context: Context) -> None:
        """Train, resume from the last checkpoint if there is one, and write the adapter's folder."""
        config, (name,) = context.recipe.finetune_config(self.mode), self.tasks
        scratch = context.run / "cache" / "training" / self.key
        context.progress.begin(self.label, config.training.steps)
        finetune(
            context.base,
            context.task(name),
            config,
            out=_folder(context, self.mode, name),
            scratch=scratch,
            logs=context.run / "logs" / self.mode / name,
            stage=self.key,
            overwrite=True,
            on_step=lambda step, total, loss: context.progress.update(step, f"loss {loss:.3f}"),
        )
        shutil.rmtree(scratch, ignore_errors=True)
        context.experts.forget(self.mode, name)
        context.progress.end()

    def files(self, context: Context) -> list[Path]:
        """What decides the adapter is in its ``tangora.json``."""
        return [_folder(context, self.mode, task) / "tangora.json" for task in self.tasks]

    def done(self, context: Context) -> bool:
        """Whether the adapters of exactly this job are on disk; a folder appears whole or not at all."""
        try:
            return all(read_json(path).get("stage") == self.key for path in self.files(context))
        except FileError:
            return False

    def digest(self, context: Context) -> str:
        """Hash of the weights."""
        return digest([context.experts[self.mode][task].fingerprint for task in self.tasks])


def _folder(context: Context, mode: str, task: str) -> Path:
    return context.run / "adapters" / mode / task


def expert_jobs(recipe: Recipe, sources: Sources) -> list[ExpertJob]:
    """Return a job for every mode and task, modes outermost."""
    jobs = []
    for mode in recipe.modes:
        config = recipe.finetune_config(mode)
        decides = config.model_dump(mode="json", exclude={"training": {"report_to", "workers", "checkpoint_every"}})
        for task, facts in sources.tasks.items():
            key = digest([CODE, decides, sources.base, task, facts.fingerprint])
            jobs.append(ExpertJob(key, (task,), (), Resources(_work(config)), mode))
    return jobs


def _work(config: FinetuneConfig) -> float:
    training = config.training
    passes = {"none": 3, "module": 3, "model": 6}[config.linearize]
    return training.steps * training.batch_size * training.gradient_accumulation * passes


def experts_of(jobs: list[ExpertJob], mode: str) -> list[ExpertJob]:
    """Return the jobs of one mode."""
    return [job for job in jobs if job.mode == mode]
