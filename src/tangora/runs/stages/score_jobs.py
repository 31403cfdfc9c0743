"""The scoring jobs of a run: their keys, inputs and amounts of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tangora.config.recipe import FusionEntry, Recipe
from tangora.evaluation.evaluator import scoring_code
from tangora.methods import get
from tangora.modes.contract import mode_of
from tangora.runs.jobs import Job, Resources
from tangora.runs.stages.cells import Cell, cells
from tangora.runs.stages.column_files import ColumnsJob, scored_on_columns
from tangora.runs.stages.experts import ExpertJob
from tangora.runs.stages.fusion import FusionStage
from tangora.runs.stages.polisher import polish_code
from tangora.runs.stages.router import router_code
from tangora.runs.stages.scores import ExpertScoresJob, FusionScoresJob, ZeroShotJob
from tangora.runs.stages.statistics import StatisticsJob
from tangora.runs.stages.work import cells_work, rows_of
from tangora.support.files import digest
from tangora.support.seams import ROUTERS, SEARCHES
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.runs.sources import Sources

__all__ = ["expert_score_jobs", "fusion_score_jobs", "zero_shot_job"]

CODE = "scores-1"  # increase it if the same scores are written in another form
SUBSETS = 8  # per job: enough to make the cost of loading experts small, few enough to share jobs among processes


def zero_shot_job(recipe: Recipe, sources: Sources) -> ZeroShotJob:
    """Return the job that scores the base model."""
    prints = [facts.fingerprint for facts in sources.tasks.values()]
    key = digest(
        [
            CODE,
            "zero-shot",
            _code(recipe),
            recipe.base.identity(sources.base),
            list(sources.tasks),
            prints,
            recipe.evaluation.batch_size,
        ]
    )
    return ZeroShotJob(key, tuple(sources.tasks), (), Resources(rows_of(sources, sources.tasks, "test", "validation")))


def expert_score_jobs(
    recipe: Recipe, sources: Sources, experts: Sequence[ExpertJob], columns: Sequence[ColumnsJob]
) -> list[ExpertScoresJob]:
    """Return a job for every expert."""
    jobs = []
    for expert in experts:
        read = [job for job in columns if job.mode == expert.mode]
        for task in expert.tasks:
            names = tuple(sources.tasks) if recipe.evaluation.others else (task,)
            needed = [job.key for job in read if job.split == "test" or job.tasks == (task,)]
            inputs = (expert.key, *needed)
            key = digest([CODE, "expert", _code(recipe), task, inputs, list(names), recipe.evaluation.batch_size])
            work = 1.0 if read else rows_of(sources, names, "test") + rows_of(sources, [task], "validation")
            jobs.append(ExpertScoresJob(key, names, inputs, Resources(work), expert.mode, task))
    return jobs


def fusion_score_jobs(recipe: Recipe, sources: Sources, before: Sequence[Job]) -> list[FusionScoresJob]:
    """Return a job for every block of cells: a mode, a space, up to `SUBSETS` subsets, and entries in their order.

    An entry that trains or searches by forward passes takes minutes: it has a job by itself for each subset. Cells that
    are equal in two spaces are scored once: the job of a space reads the scores of the previous one.
    """
    jobs: list[FusionScoresJob] = []
    scored: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # mode and subset -> keys of jobs in other spaces
    settings: dict[tuple[int, ...], list[object]] = {}
    for (mode, space), of_space in groupby(cells(recipe), key=lambda cell: (cell.mode, cell.space)):
        read = tuple(job.key for job in before if _is_read(job, mode))
        made: list[FusionScoresJob] = []
        for own in _blocks(recipe, list(of_space), scored_on_columns(recipe, sources, mode)):
            block = tuple(dict.fromkeys(cell.subset for cell in own))
            same = tuple(dict.fromkeys(key for subset in block for key in scored.get((mode, subset), ())))
            entries = {id(cell.entry): cell.entry for cell in own}
            if tuple(entries) not in settings:  # the same for most blocks of a plan with many subsets
                settings[tuple(entries)] = _determinants(recipe, list(entries.values()))
            key = digest([CODE, "fusion", mode, space, block, settings[tuple(entries)], read, same])
            work = cells_work(recipe, sources, own)
            names = tuple(dict.fromkeys(name for subset in block for name in subset))
            labels = tuple(entry.label for entry in entries.values())
            made.append(FusionScoresJob(key, names, (*read, *same), work, mode, space, block, labels))
        for job in made:
            for subset in job.subsets:
                scored.setdefault((mode, subset), []).append(job.key)
        jobs += made
    return jobs


def _blocks(recipe: Recipe, listed: Sequence[Cell], on_columns: bool) -> Iterator[list[Cell]]:
    """Divide the cells of a mode and space: neighbouring entries together, those that take long by themselves."""
    there = {id(cell.entry) for cell in listed}
    groups: list[tuple[bool, list[int]]] = []
    for entry in (entry for entry in recipe.fusion.methods if id(entry) in there):
        alone = _takes_long(entry, on_columns)
        if alone or not groups or groups[-1][0]:
            groups.append((alone, []))
        groups[-1][1].append(id(entry))
    for alone, keys in groups:
        own = [cell for cell in listed if id(cell.entry) in keys]
        by_subset = [list(of_subset) for _, of_subset in groupby(own, key=lambda cell: cell.subset)]
        size = 1 if alone else SUBSETS
        for i in range(0, len(by_subset), size):
            yield [cell for of_subset in by_subset[i : i + size] for cell in of_subset]


def _takes_long(entry: FusionEntry, on_columns: bool) -> bool:
    """Return whether an entry trains something, or searches by passes through the model."""
    if entry.route is not None:
        return bool(ROUTERS.get(entry.route.name).needs != "nothing")
    if entry.search is not None and (entry.search.per_site or not on_columns):
        return True
    return entry.polish is not None


def _is_read(job: Job, mode: str) -> bool:
    if isinstance(job, ZeroShotJob):
        return True
    return isinstance(job, ExpertJob | StatisticsJob | ColumnsJob | ExpertScoresJob) and job.mode == mode


def _determinants(recipe: Recipe, listed: Sequence[FusionEntry]) -> list[object]:
    """Return what determines the scores of entries, besides the inputs: settings, and the code of the methods."""
    entries: list[FusionEntry] = []
    for entry in listed:
        if entry not in entries:
            entries.append(entry)
    searches = [SEARCHES.get(entry.search.name) for entry in entries if entry.search is not None]
    methods = [get(entry.method).function for entry in entries if entry.route is None]
    code = source_digest(FusionStage, *methods, *searches, *(search.settings for search in searches))
    settings = [_dumped(entry) for entry in entries]
    routers = sorted({entry.route.name for entry in entries if entry.route is not None})
    routed = [router_code(name, recipe.base.family) for name in routers]
    polished = [polish_code(recipe.base.family)] if any(entry.polish for entry in entries) else []
    alone = [] if recipe.evaluation.others else ["own tasks"]
    return [
        *alone,
        *polished,
        *routed,
        settings,
        code,
        _code(recipe),
        recipe.fusion.selection,
        recipe.seed,
        recipe.evaluation.batch_size,
    ]


def _dumped(entry: FusionEntry) -> dict[str, object]:
    """Return an entry's settings, without keys that earlier versions did not have unless they are used."""
    unused = {name for name in ("polish", "rank", "route") if getattr(entry, name) is None}
    return entry.model_dump(mode="json", exclude=unused or None)


def _code(recipe: Recipe) -> str:
    """Return a digest of the code that scores answers: that of the recipe's family, metrics and modes."""
    metrics = sorted({metric for task in recipe.tasks for metric in task.all_metrics})
    modes = [mode_of(settings) for settings in recipe.modes.values()]
    return digest([scoring_code(recipe.base.family, tuple(metrics)), source_digest(*modes)])
