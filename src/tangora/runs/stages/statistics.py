"""Collect statistics of an expert's training rows, for the methods of a recipe that need them.

RUN/statistics/<mode>/<task>.safetensors, .json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tangora.config.recipe import Recipe
from tangora.errors import TangoraError
from tangora.evaluation.collection import collect_statistics
from tangora.fusion.statistics import load
from tangora.methods import Statistic, get
from tangora.modes.contract import is_fusable, mode_of
from tangora.runs.jobs import Job, Resources
from tangora.support.files import digest

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.runs.context import Context
    from tangora.runs.sources import Sources
    from tangora.runs.stages.experts import ExpertJob

__all__ = ["StatisticsJob", "kinds_of", "statistics_jobs", "used_rows"]

SPLIT = "train"  # coefficients are chosen on validation rows, and test rows are scored


@dataclass(frozen=True)
class StatisticsJob(Job):
    """Collect the statistics of one expert.

    Attributes:
        mode: of the expert.
    """

    kind: ClassVar[str] = "statistics"
    stage: ClassVar[str] = "statistics"
    mode: str

    @property
    def about(self) -> str:
        """Mode and task."""
        return f"statistics · {self.mode} · {self.tasks[0]}"

    def run(self, context: Context) -> None:
        """Pass the rows through the expert, and write both files."""
        (name,), settings = self.tasks, context.recipe.fusion.statistics
        collect_statistics(
            context.base,
            context.task(name),
            context.experts[self.mode][name],
            also=self._others(context),
            kinds=kinds_of(context.recipe, self.mode),
            split=SPLIT,
            rows=settings.rows,
            seed=context.recipe.seed,
            batch_size=settings.batch_size,
            progress=context.progress,
        ).save(self._path(context), overwrite=True)
        context.forget_statistics(self.mode)

    def _others(self, context: Context) -> list[Adapter]:
        """Return the other experts of a mode with given ones, which may change layers that this one does not."""
        if not context.recipe.modes[self.mode].experts:
            return []
        return [adapter for name, adapter in context.experts[self.mode].items() if name != self.tasks[0]]

    def files(self, context: Context) -> list[Path]:
        """Return the sidecar, which contains the hash of the tensors."""
        return [self._path(context).with_suffix(".json")]

    def done(self, context: Context) -> bool:
        """Return whether the files exist, are complete, and are of this expert with its head and these rows."""
        (name,), settings = self.tasks, context.recipe.fusion.statistics
        facts = context.sources.tasks[name]
        wanted = {
            "kinds": kinds_of(context.recipe, self.mode),
            "adapter": context.experts[self.mode][name].fingerprint,
            "task_fingerprint": facts.fingerprint,
            "split": SPLIT,
            "rows": min(settings.rows, facts.rows[SPLIT]),
            "seed": context.recipe.seed,
        }
        try:
            about = load(self._path(context)).about
        except TangoraError:  # missing or damaged
            return False
        if about.model_dump(include=set(wanted)) != wanted or about.base.fingerprint != context.sources.base:
            return False
        return not self.inputs_changed(context)  # the files do not record the expert's head

    def _path(self, context: Context) -> Path:
        return context.home / "statistics" / self.mode / f"{self.tasks[0]}.safetensors"


def kinds_of(recipe: Recipe, mode: str) -> list[Statistic]:
    """Return the kinds of statistics that the recipe's methods for ``mode`` need: none if it leaves nothing to fuse."""
    settings = recipe.modes[mode]
    if not is_fusable(mode_of(settings), settings.model_extra or {}):
        return []
    entries = [entry for entry in recipe.fusion.methods if entry.route is None and mode in (entry.modes or [mode])]
    methods = [get(entry.method) for entry in entries]
    return sorted({method.statistics for method in methods if method.statistics is not None}, reverse=True)


def statistics_jobs(recipe: Recipe, sources: Sources, experts: Sequence[ExpertJob]) -> list[StatisticsJob]:
    """Return a job for every expert of a mode in which a method needs statistics."""
    settings, jobs = recipe.fusion.statistics, []
    for expert in experts:
        kinds = kinds_of(recipe, expert.mode)
        for task in expert.tasks if kinds else ():
            rows = min(settings.rows, sources.tasks[task].rows[SPLIT])
            others = [job.key for job in experts if job.mode == expert.mode and job != expert]
            others = others if recipe.modes[expert.mode].experts else []  # layers of given experts may differ
            key = digest(["statistics-1", expert.key, task, kinds, rows, recipe.seed, *others])
            inputs = (expert.key, *others)
            jobs.append(StatisticsJob(key, (task,), inputs, Resources(4.0 * rows * len(kinds)), expert.mode))
    return jobs


def used_rows(context: Context) -> dict[str, Any]:
    """Return the rows of a run's statistics, for ``run.json``: mode -> task -> kinds, split, rows."""
    keys, rows = {"kinds", "split", "rows", "labels"}, dict[str, Any]()
    for job in context.plan:
        if isinstance(job, StatisticsJob):
            for task, one in context.at(job.seed).statistics(job.mode).items():
                rows.setdefault(job.mode, {})[task] = one.about.model_dump(include=keys, exclude_none=True)
    return rows
