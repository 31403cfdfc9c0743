"""Columns of complete splits, for modes with fusions that are scored on columns.

    RUN/cache/columns/<mode>/<task>-<split>.safetensors

Columns of some rows or per site are made by the first search that needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tangora.config.recipe import Recipe
from tangora.errors import TangoraError
from tangora.modes.contract import mode_of
from tangora.runs.jobs import Job, Resources
from tangora.support.files import digest
from tangora.tangent.columns import columns_key, load_columns

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.sources import Sources
    from tangora.runs.stages.experts import ExpertJob

__all__ = ["ColumnsJob", "column_jobs", "scored_on_columns"]

SPLITS = ("test", "validation")


@dataclass(frozen=True)
class ColumnsJob(Job):
    """Make the columns of every expert of a mode on one split of a task.

    Attributes:
        mode: of the experts.
        split: of the task.
    """

    kind: ClassVar[str] = "columns"
    stage: ClassVar[str] = "columns"
    mode: str
    split: str

    @property
    def about(self) -> str:
        """Mode, task and split."""
        return f"columns · {self.mode} · {self.tasks[0]} · {self.split}"

    def run(self, context: Context) -> None:
        """Pass the rows through the expansion, and write the file."""
        context.progress.begin(self.label, 1)
        context.columns.get(self.mode, self.tasks[0], self.split)
        context.progress.advance()
        context.progress.end()

    def files(self, context: Context) -> list[Path]:
        """One file."""
        return [context.columns_of(self.mode) / f"{self.tasks[0]}-{self.split}.safetensors"]

    def done(self, context: Context) -> bool:
        """Return whether the file exists, is complete, and is of these experts and rows."""
        experts, (name,) = dict(context.experts[self.mode]), self.tasks
        try:
            load_columns(self.files(context)[0], columns_key(context.base, context.task(name), self.split, experts))
        except TangoraError:
            return False
        return True


def scored_on_columns(recipe: Recipe, sources: Sources, mode: str) -> bool:
    """Return whether linear fusions of a mode are scored on columns.

    They are if logits are linear in the coefficients and every task has classes.
    """
    linear = mode_of(recipe.modes[mode]).linear_in_coefficients
    return linear and all(facts.classes for facts in sources.tasks.values())


def column_jobs(recipe: Recipe, sources: Sources, experts: Sequence[ExpertJob]) -> list[ColumnsJob]:
    """Return a job for every task and split of the modes that are scored on columns."""
    jobs = []
    for mode in recipe.modes:
        inputs = tuple(job.key for job in experts if job.mode == mode)
        for task, facts in sources.tasks.items() if scored_on_columns(recipe, sources, mode) else ():
            for split in SPLITS:
                key = digest(["columns", inputs, task, facts.fingerprint, split])
                work = Resources(2.0 * facts.rows[split] * (1 + len(sources.tasks)))
                jobs.append(ColumnsJob(key, (task,), inputs, work, mode, split))
    return jobs
