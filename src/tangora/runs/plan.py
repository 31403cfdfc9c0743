"""The plan of a run: its jobs, derived from its recipe and its sources.

    expert ─▶ statistics ─┐
       │  └─▶ columns ────┤
       └──────────────────┴─▶ expert scores ─▶ fusion scores ─▶ tables ─▶ report
    zero-shot scores ─────────────┘                  └─▶ fused adapters ─▶┘

No model or data are loaded for it, and no file is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tangora.config.recipe import Recipe
from tangora.errors import ArgumentError
from tangora.runs.jobs import Job
from tangora.runs.sources import Sources
from tangora.runs.stages.column_files import column_jobs
from tangora.runs.stages.expert_jobs import expert_jobs
from tangora.runs.stages.fused import fused_jobs
from tangora.runs.stages.report import report_job
from tangora.runs.stages.score_jobs import expert_score_jobs, fusion_score_jobs, zero_shot_job
from tangora.runs.stages.statistics import statistics_jobs
from tangora.runs.stages.tables import tables_job

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, each after the jobs that it reads.

    Args:
        jobs: in order.
    """

    jobs: tuple[Job, ...]

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, key: str) -> Job:
        return self._by_key[key]

    @cached_property
    def _by_key(self) -> dict[str, Job]:
        return {job.key: job for job in self.jobs}

    def find(self, start: str) -> Job:
        """Return the job with a key that starts with ``start``.

        Raises:
            ArgumentError: no job, or more than one, has such a key.
        """
        matching = [job for job in self.jobs if start and job.key.startswith(start)]
        if len(matching) == 1:
            return matching[0]
        what = f"{len(matching)} jobs have keys that start with this" if matching else "no job has this key"
        raise ArgumentError(what, got=start, where="KEY", fix="list the keys with tangora jobs RUN")

    def before(self, job: Job) -> list[Job]:
        """Return the jobs that a job depends on, directly or not, in order."""
        keys = set(job.inputs)
        for other in reversed(self.jobs):
            if other.key in keys:
                keys |= set(other.inputs)
        return [other for other in self.jobs if other.key in keys]


def plan(recipe: Recipe, sources: Sources) -> Plan:
    """Return the jobs of a run, in the order in which one process does them."""
    experts = expert_jobs(recipe, sources)
    statistics = statistics_jobs(recipe, sources, experts)
    columns = column_jobs(recipe, sources, experts)
    zero_shot = zero_shot_job(recipe, sources)
    alone = expert_score_jobs(recipe, sources, experts, columns)
    fusions = fusion_score_jobs(recipe, sources, [zero_shot, *experts, *statistics, *columns, *alone])
    tables = tables_job(recipe, [*experts, zero_shot, *alone, *fusions])
    fused = fused_jobs(recipe, sources, experts, statistics, fusions)
    last = report_job(list(sources.tasks), [tables, *fused])
    return Plan((*experts, *statistics, *columns, zero_shot, *alone, *fusions, tables, *fused, last))
