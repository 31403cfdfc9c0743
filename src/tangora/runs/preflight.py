"""Preview a run: its jobs and their time, sites, trainable parameters, disk space, and existing results."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from tangora.config.recipe import Recipe
from tangora.modes.contract import Footprint, mode_of
from tangora.modes.given import footprint_of
from tangora.modes.memory import Memory, memory_of, scoring_memory
from tangora.modes.timing import fits, step_seconds
from tangora.progress import Progress
from tangora.runs.checks import check_methods, check_modes
from tangora.runs.context import Context
from tangora.runs.estimate import measured_rates
from tangora.runs.folder import claim
from tangora.runs.jobs import Job
from tangora.runs.runner import missing, named
from tangora.runs.stages.cells import cells
from tangora.runs.stages.experts import ExpertJob
from tangora.runs.stages.given import GivenJob, given_of
from tangora.tasks import make_readout

if TYPE_CHECKING:
    from tangora.tasks import Base, Task
    from tangora.tasks.overview import Overview

__all__ = ["PlannedJob", "PlannedMode", "Preflight", "preflight"]


@dataclass(frozen=True)
class PlannedMode:
    """The adapters that a run would train, or is given, in one mode.

    Attributes:
        mode: its name.
        adapters: number of its adapters.
        done: number of those that exist already.
        steps: of each training; 0 if nothing is trained.
        learning_rate: of each training; 0 if nothing is trained.
        sites: places in the model where an adapter changes weights; the most of those that are given.
        trainable: the smallest and the largest number of trained parameters; heads differ by task.
        size: bytes of all its adapters.
        memory: the estimate for the task that takes the most.
        seconds_per_step: of a training, measured on a few steps of its first task; None if jobs of the run were
            measured, if nothing is left to train, or if it may take more memory than is free.
        given: number of adapters that exist, and are not trained.
        left: number of adapters that are still to be trained.
    """

    mode: str
    adapters: int
    done: int
    steps: int
    learning_rate: float
    sites: int
    trainable: tuple[int, int]
    size: int
    memory: Memory
    seconds_per_step: float | None
    given: int = 0
    left: int = 0


@dataclass(frozen=True)
class PlannedJob:
    """A job of a run, and whether it is done.

    Attributes:
        key, kind, label, tasks, inputs: those of the `Job`.
        done: whether its files exist.
    """

    key: str
    kind: str
    label: str
    tasks: tuple[str, ...]
    inputs: tuple[str, ...]
    done: bool

    @classmethod
    def of(cls, jobs: Iterable[Job], left: Sequence[Job]) -> tuple[PlannedJob, ...]:
        """Return the jobs, with those in ``left`` marked as not done."""
        keys = {job.key for job in left}
        return tuple(cls(job.key, job.kind, job.label, job.tasks, job.inputs, job.key not in keys) for job in jobs)


@dataclass(frozen=True)
class Preflight:
    """The preview of a run.

    Attributes:
        name: the recipe's.
        run: the folder.
        modes: the adapters of each.
        tasks: names.
        rows: task -> what its rows are like.
        subsets: number of sets of tasks to fuse.
        comparisons: number of fusions to score: by mode, subset, method and space.
        free: free bytes on the disk of the run.
        jobs: all jobs, each after its inputs.
        seconds: estimated time of the jobs that are not done, in one process; None before any was measured.
        unknown: number of these jobs with a search of unknown length, which takes additional time.
    """

    name: str
    run: Path
    modes: tuple[PlannedMode, ...]
    tasks: tuple[str, ...]
    rows: Mapping[str, Overview]
    subsets: int
    comparisons: int
    free: int
    jobs: tuple[PlannedJob, ...]
    seconds: float | None
    unknown: int

    @property
    def size(self) -> int:
        """Bytes of all adapters."""
        return sum(mode.size for mode in self.modes)


def preflight(
    recipe: Recipe, out: Path, progress: Progress, *, overwrite: bool = False, only: Sequence[str] = ()
) -> Preflight:
    """Return the preview of a run, or of a part of it as in `tangora.runs.runner.run`; write nothing.

    Base and data are loaded, so that their errors surface before training starts. Targets are checked in all rows;
    inputs too, unless a split has many rows and the folder no results: then in a sample, see `Context.survey`.

    Raises:
        TangoraError: as `tangora.runs.runner.run` would.
    """
    check_methods(recipe)
    claim(out, recipe, overwrite)
    context = Context(out, recipe, progress)
    rows = context.survey()
    check_modes(recipe, context.base)
    left, rates = missing(context), measured_rates(out)
    wanted = named(context, only) if only else {job.key for job in context.plan}
    left = [job for job in left if job.key in wanted]
    planned = list(cells(recipe))
    nearest = next(p for p in [out, *out.absolute().parents] if p.exists())
    return Preflight(
        name=recipe.name,
        run=out,
        modes=tuple(_modes(context, timed=not rates.measured)),
        tasks=tuple(context.names),
        rows=rows,
        subsets=len({cell.subset for cell in planned}),
        comparisons=len(planned),
        free=shutil.disk_usage(nearest).free,
        jobs=PlannedJob.of([job for job in context.plan if job.key in wanted], left),
        seconds=sum(rates.seconds(job) for job in left) if rates.measured or not left else None,
        unknown=sum(not job.resources.known for job in left),
    )


def _modes(context: Context, timed: bool) -> Iterable[PlannedMode]:
    heads = {task.name: _head_footprint(task, context.base) for task in context.tasks.values()}
    for mode in context.recipe.modes:
        jobs = [job for job in context.plan if isinstance(job, ExpertJob) and job.mode == mode]
        given = [job for job in jobs if isinstance(job, GivenJob)]
        done = sum(len(job.tasks) for job in jobs if job.done(context.at(job.seed)))
        sizes, estimates = _of_given(context, mode, given)
        adapters = sum(len(job.tasks) for job in jobs)
        planned = PlannedMode(mode, adapters, done, 0, 0.0, 0, (0, 0), 0, Memory({}, {}), None, len(given))
        if trained := [job for job in jobs if job not in given]:
            planned = replace(_of_trained(context, planned, trained, heads, timed), given=len(given))
            estimates.append(planned.memory)
        sites = max([planned.sites, *(size.sites for size in sizes)])
        size = planned.size + sum(size.size for size in sizes)
        yield replace(planned, sites=sites, size=size, memory=Memory.most(estimates))


def _of_given(context: Context, mode: str, jobs: Sequence[GivenJob]) -> tuple[list[Footprint], list[Memory]]:
    """Return the sizes of the adapters that are given, and what scoring takes with each."""
    sizes, estimates, of_mode = list[Footprint](), list[Memory](), mode_of(context.recipe.modes[mode])
    for name in (name for job in jobs for name in job.tasks):
        task = context.task(name)
        sizes.append(footprint_of(given_of(context.recipe, mode, task, context.base)))
        rows = context.recipe.evaluation.batch_size
        estimates.append(Memory({}, scoring_memory(context.base, task, of_mode, sizes[-1], rows)))
    return sizes, estimates


def _of_trained(
    context: Context, planned: PlannedMode, jobs: Sequence[ExpertJob], heads: Mapping[str, _Head], timed: bool
) -> PlannedMode:
    """Return what the trainings of a mode take."""
    mode, scored = planned.mode, context.recipe.evaluation.batch_size
    config = context.recipe.finetune_config(mode)
    weight = mode_of(config).footprint(context.base, config)
    own = [_Head.sum_of(heads[task] for task in job.tasks) for job in jobs]  # each adapter has all of its job's
    undone = [job for job in jobs if not job.done(context.at(job.seed))]
    tasks = [context.task(name) for job in jobs for name in job.tasks]
    memory = Memory.most([memory_of(context.base, task, config, scored) for task in tasks])
    step = None
    if timed and undone and fits(memory, context.machine):
        context.progress.begin(f"time steps of {mode}", 0)
        step = step_seconds(context.base, [context.task(name) for name in undone[0].tasks], config)
        context.progress.end()
    trainable = [weight.trainable + head.trainable for head in own]
    return replace(
        planned,
        left=sum(len(job.tasks) for job in undone),
        steps=config.training.steps,
        learning_rate=config.learning_rate,
        sites=weight.sites,
        trainable=(min(trainable), max(trainable)),
        size=sum(len(job.tasks) * (weight.size + head.size) for job, head in zip(jobs, own, strict=True)),
        memory=memory,
        seconds_per_step=step,
    )


@dataclass(frozen=True)
class _Head:
    """What the parameters of a task's readout add to an adapter: numbers that are trained, and bytes on disk."""

    trainable: int
    size: int

    @classmethod
    def sum_of(cls, heads: Iterable[_Head]) -> _Head:
        listed = list(heads)
        return cls(sum(head.trainable for head in listed), sum(head.size for head in listed))


def _head_footprint(task: Task, base: Base) -> _Head:
    readout = cast(nn.Module, make_readout(task, base))
    trainable = sum(p.numel() for p in readout.parameters() if p.requires_grad)
    return _Head(trainable, 4 * sum(value.numel() for value in readout.state_dict().values()))
