"""The plan of a run: its jobs, derived from its recipe and its sources.

    expert ─▶ statistics ─┐
       │  └─▶ columns ────┤
       └──────────────────┴─▶ expert scores ─▶ fusion scores ─▶ tables ─▶ report
    zero-shot scores ─────────────┘                  └─▶ fused adapters ─▶┘

With several seeds there are the jobs of each, and one of tables and one of the report for all of them. No model or data
are loaded for a plan, and no file is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from tangora.runs.stages.scores import ZeroShotJob
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
    """Return the jobs of a run, in the order in which one process does them: seed by seed, then tables and report.

    A job that is the same with every seed, as its key says, is done once: zero-shot scores, and what is made of given
    experts alone.
    """
    zero_shot = zero_shot_job(recipe, sources)
    parts = [_of_seed(recipe.at(seed), sources, zero_shot) for seed in recipe.every_seed]
    if len(parts) > 1:
        count = Counter(job.key for part in parts for job in (*part.before, *part.fused))
        shared = {key for key, times in count.items() if times > 1}
        parts = [part.marked(seed, shared) for part, seed in zip(parts, recipe.every_seed, strict=True)]
    scored = _once(job for part in parts for job in part.scored)
    fused = [job for part in parts for job in part.fused]
    tables = tables_job(recipe, scored)
    last = report_job(list(sources.tasks), [tables, *fused])
    return Plan((*_once(job for part in parts for job in part.before), tables, *fused, last))


@dataclass(frozen=True)
class _Part:
    """The jobs of one seed.

    Attributes:
        before: those before the tables.
        scored: those of them that the tables read.
        fused: those that make the fused adapters.
    """

    before: Sequence[Job]
    scored: Sequence[Job]
    fused: Sequence[Job]

    def marked(self, seed: int, shared: Collection[str]) -> _Part:
        """Return the jobs with their seed, without one for those that other seeds share."""
        before, scored, fused = (
            [job if job.key in shared else replace(job, seed=seed) for job in jobs]
            for jobs in (self.before, self.scored, self.fused)
        )
        return _Part(before, scored, fused)


def _of_seed(recipe: Recipe, sources: Sources, zero_shot: ZeroShotJob) -> _Part:
    experts = expert_jobs(recipe, sources)
    statistics = statistics_jobs(recipe, sources, experts)
    columns = column_jobs(recipe, sources, experts)
    alone = expert_score_jobs(recipe, sources, experts, columns)
    fusions = fusion_score_jobs(recipe, sources, [zero_shot, *experts, *statistics, *columns, *alone])
    return _Part(
        [*experts, *statistics, *columns, zero_shot, *alone, *fusions],
        [*experts, zero_shot, *alone, *fusions],
        fused_jobs(recipe, sources, experts, statistics, fusions),
    )


def _once(jobs: Iterable[Job]) -> list[Job]:
    return list({job.key: job for job in jobs}.values())
