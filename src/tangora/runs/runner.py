"""Run a recipe: plan the jobs, do those with missing files, and record wall times.

    RUN/recipe.yaml                                  the resolved recipe
    RUN/adapters/<mode>/<task>/                      `tangora.runs.stages.experts`
    RUN/statistics/<mode>/<task>.safetensors, .json  `tangora.runs.stages.statistics`
    RUN/scores.csv, candidates.csv, summary.json, similarity.json, searches.json   `tangora.runs.stages.tables`
    RUN/fused/<mode>/<label>[-factors|-core][-oracle]/                             `tangora.runs.stages.fused`
    RUN/run.json, run.log                            versions, machine, wall times; the log
    RUN/report.html, figures/, explorer-<mode>.html  `tangora.runs.stages.report`
    RUN/cache/                                       intermediate results, for resuming

Every output is written atomically, so a killed run that is started again resumes and ends with the same files, except
for wall times.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.config.recipe import Recipe
from tangora.errors import ArgumentError
from tangora.progress import Overall, Progress
from tangora.runs.checks import check_methods, check_modes
from tangora.runs.context import Context
from tangora.runs.estimate import Estimate, measured_rates
from tangora.runs.execution import perform
from tangora.runs.folder import Clock, claim, locked, logged, provenance
from tangora.runs.jobs import Job
from tangora.runs.listener import Listener
from tangora.runs.loading import prepare
from tangora.runs.presence import driver_file, job_file, present, write_plan
from tangora.runs.stages.experts import ExpertJob
from tangora.runs.stages.scores import fold
from tangora.runs.stages.statistics import used_rows
from tangora.support.files import write_text
from tangora.support.publishing import discard, remove_stale_below
from tangora.support.seams import EXECUTORS
from tangora.tasks.cuts import cut_lines

if TYPE_CHECKING:
    from tangora.runs.contract import Executor

__all__ = ["missing", "named", "prepare", "run"]

log = logging.getLogger("tangora")
_NAMED = 6  # adapters that a line names


def run(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    only: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Fine-tune, fuse, evaluate, report; return the run's folder.

    Args:
        recipe: from `tangora.config.recipe.load_recipe`.
        out: the run's folder. If it contains a run of the same recipe, that run resumes.
        overwrite: let a different recipe take over the folder; results that both share are reused.
        only: do only the jobs with one of these texts in their label, and what they read; no tables and no report are
            made, unless they are named. Empty for everything.
        progress: receives the progress.

    Raises:
        ArgumentError: no job has a label with a text of ``only``.
        OutputError: ``out`` contains something else, is in use by another run, or cannot be written.
        TangoraError: the recipe, the data, the base or an adapter is invalid.
    """
    out = Path(out)
    check_methods(recipe)
    claim(out, recipe, overwrite)
    with locked(out), logged(out), present(driver_file(out)):
        log.info("run %s in %s", recipe.name, out)
        remove_stale_below(out)
        context, clock = Context(out, recipe, progress or Progress()), Clock(out)
        wanted = _prepare(context, clock, only)
        if only:
            _drive_some(context, clock, wanted)
        else:
            _drive(context, clock)
            log.info("done: %s", out / "report.html")
    return out


def _prepare(context: Context, clock: Clock, only: Sequence[str]) -> set[str]:
    """Load what the plan depends on, and write the files from which other processes make the same plan.

    Returns:
        The keys of the jobs that ``only`` names, and of those that they read; they are looked up before anything is
        written.
    """
    started = time.perf_counter()
    context.progress.overall(Overall(0.0, None, 0, 0, "prepare"))
    try:
        sources = context.load()
        for line in cut_lines({name: facts.cut for name, facts in sources.tasks.items()}):
            log.warning(line)
        check_modes(context.recipe, context.base)
        wanted = named(context, only)
    finally:
        clock.add("prepare", time.perf_counter() - started)
    write_text(context.run / "recipe.yaml", context.recipe.to_yaml(context.run))
    sources.write(context.run, context.recipe)
    return wanted


def _drive(context: Context, clock: Clock) -> None:
    """Do the missing jobs; the report is last and made in this process, since it shows the wall times of the others."""
    left, report = missing(context), context.plan.jobs[-1]
    todo = left if report in left else [*left, report]
    listener = _execute(context, clock, left, todo)
    _report(context, clock, listener)
    write_plan(context.run, context.recipe.name, context.plan.jobs, left=())


def _report(context: Context, clock: Clock, listener: Listener) -> None:
    """Write versions, machine and wall times, and the report that shows them."""
    used = used_rows(context)
    clock.save(provenance(context.recipe, context.sources) | ({"statistics": used} if used else {}))
    perform(context.plan.jobs[-1], context, listener)


def named(context: Context, only: Sequence[str]) -> set[str]:
    """Return the keys of the jobs with one of these texts in their label, and of what they read.

    Raises:
        ArgumentError: no job has a label with a text.
    """
    wanted = set[str]()
    for text in only:
        found = [job for job in context.plan if text in job.label] if text.strip() else []
        if not found:
            labels = ", ".join(list(dict.fromkeys(job.label for job in context.plan))[:_NAMED])
            fix = f"labels are {labels}, ...; all of them: tangora jobs RUN"
            raise ArgumentError("no job has this in its label", got=text, where="--only", fix=fix)
        wanted |= {job.key for one in found for job in (one, *context.plan.before(one))}
    return wanted


def _drive_some(context: Context, clock: Clock, wanted: set[str]) -> None:
    """Do those of the missing jobs that are wanted."""
    left, report = missing(context), context.plan.jobs[-1]
    some = [job for job in left if job.key in wanted]
    listener = _execute(context, clock, left, some)
    if report.key in wanted:
        _report(context, clock, listener)
    rest = [job for job in left if job.key not in wanted]
    _say_stale(context, rest)
    write_plan(context.run, context.recipe.name, context.plan.jobs, rest)
    log.info("%d jobs of %d are left", len(rest), len(context.plan))


def _execute(context: Context, clock: Clock, left: Sequence[Job], todo: Sequence[Job]) -> Listener:
    """Give the executor what is to be done, but for the report.

    Args:
        context: of the run.
        clock: of the run.
        left: all jobs that are not done.
        todo: those to do now, with the report if it will be made.
    """
    report, now, undone = context.plan.jobs[-1], {job.key for job in todo}, {job.key for job in left}
    _log_earlier(context)
    _say_again(context, [job for job in left if job.key in now])
    _tidy(context, left)
    fold(context.run, keep=undone)
    write_plan(context.run, context.recipe.name, context.plan.jobs, [j for j in context.plan if j.key in now | undone])
    listener = Listener(context.plan, context.progress, clock, Estimate(todo, measured_rates(context.run)))
    chosen = context.recipe.executor
    executor: Executor = EXECUTORS.get(chosen.name)
    if others := [job for job in todo if job is not report]:
        executor.run(others, context, chosen.settings, listener)
    fold(context.run, keep=undone - now)
    return listener


def _log_earlier(context: Context) -> None:
    """Say which adapters are taken as they are although their keys do not cover the code that trained them."""
    for job in context.plan:
        if isinstance(job, ExpertJob) and job.is_earlier(context.at(job.seed)):
            log.info(
                "%s: taken as it is, from an earlier version; its key does not cover code. Delete %s to train it again",
                job.label,
                job.files(context.at(job.seed))[0].parent,
            )


def _say_again(context: Context, left: Sequence[Job]) -> None:
    """Say which adapters are there and are made again all the same: this may take long, and nobody asked for it."""
    experts = [job for job in left if isinstance(job, ExpertJob)]
    again = [job for job in experts if all(path.exists() for path in job.files(context.at(job.seed)))]
    if again:
        named = ", ".join(job.label for job in again[:_NAMED]) + (", ..." if len(again) > _NAMED else "")
        count = f"{len(again)} adapters are" if len(again) > 1 else "1 adapter is"
        line = f"{count} made again ({named}): made with other settings, rows or weights, or by other code of Tangora"
        log.warning(line)
        context.progress.note(line)


def _say_stale(context: Context, left: Sequence[Job]) -> None:
    """Name the tables and the report that are there, and are not of this recipe or this version."""
    shown = [job for job in left if job.kind in ("tables", "report")]
    if stale := [path.name for job in shown for path in job.files(context) if path.exists()]:
        line = f"{', '.join(stale)}: of an earlier recipe or version; the command without --only makes them again"
        log.warning(line)
        context.progress.note(line)


def _tidy(context: Context, left: Sequence[Job]) -> None:
    """End what kills have left of jobs that are done.

    Remove checkpoints of complete adapters and what processes said of themselves; write lost records.
    """
    undone = {job.key for job in left}
    for job in context.plan:
        if job.key in undone:
            continue
        if isinstance(job, ExpertJob):
            discard(job.checkpoints(context))
        job_file(context.run, job.key).unlink(missing_ok=True)
        if not job.recorded(context):
            job.record(context.at(job.seed), None)


def missing(context: Context, jobs: Iterable[Job] | None = None) -> list[Job]:
    """Return the jobs with missing files, or with files that were made from other inputs than the current ones.

    Args:
        context: of the run.
        jobs: to check, each after its inputs; by default the whole plan.
    """
    left: dict[str, Job] = {}
    for job in context.plan if jobs is None else jobs:
        if any(key in left for key in job.inputs) or not job.done(context.at(job.seed)):
            left[job.key] = job
    return list(left.values())
