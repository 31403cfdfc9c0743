"""Preview a run: its jobs and their time, sites, trainable parameters, disk space, and existing results."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from tangora.config.recipe import Recipe
from tangora.modes.contract import mode_of
from tangora.modes.memory import Memory, memory_of
from tangora.modes.timing import fits, step_seconds
from tangora.progress import Progress
from tangora.runs.checks import check_methods, check_modes
from tangora.runs.context import Context
from tangora.runs.estimate import measured_rates
from tangora.runs.folder import claim
from tangora.runs.jobs import Job
from tangora.runs.runner import missing
from tangora.runs.stages.cells import cells
from tangora.runs.stages.experts import ExpertJob
from tangora.tasks import make_readout

if TYPE_CHECKING:
    from tangora.tasks import Base, Task
    from tangora.tasks.overview import Overview

__all__ = ["PlannedJob", "PlannedMode", "Preflight", "preflight"]


@dataclass(frozen=True)
class PlannedMode:
    """The adapters that a run would train in one mode.

    Attributes:
        mode: its name.
        adapters: number of its adapters.
        done: number of those that exist already.
        steps: of each training.
        learning_rate: of each training.
        sites: places in the model where an adapter changes weights.
        trainable: the smallest and the largest number of trained parameters; heads differ by task.
        size: bytes of all its adapters.
        memory: the estimate for the task that takes the most.
        seconds_per_step: of a training, measured on a few steps of its first task; None if jobs of the run were
            measured, if nothing is left to train, or if it may take more memory than is free.
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


def preflight(recipe: Recipe, out: Path, progress: Progress, *, overwrite: bool = False) -> Preflight:
    """Return the preview of a run; write nothing.

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
        jobs=PlannedJob.of(context.plan, left),
        seconds=sum(rates.seconds(job) for job in left) if rates.measured or not left else None,
        unknown=sum(not job.resources.known for job in left),
    )


def _modes(context: Context, timed: bool) -> Iterable[PlannedMode]:
    experts = [job for job in context.plan if isinstance(job, ExpertJob)]
    heads = {task.name: _head_footprint(task, context.base) for task in context.tasks.values()}
    scored = context.recipe.evaluation.batch_size
    for mode in context.recipe.modes:
        config = context.recipe.finetune_config(mode)
        of_mode = [job for job in experts if job.mode == mode]
        weight = mode_of(config).footprint(context.base, config)
        own = [_Head.sum_of(heads[task] for task in job.tasks) for job in of_mode]  # each adapter has all of its job's
        undone = [job for job in of_mode if not job.done(context)]
        memory = Memory.most([memory_of(context.base, task, config, scored) for task in context.tasks.values()])
        step = None
        if timed and undone and fits(memory, context.machine):
            context.progress.begin(f"time steps of {mode}", 0)
            step = step_seconds(context.base, [context.task(name) for name in undone[0].tasks], config)
            context.progress.end()
        trainable = [weight.trainable + head.trainable for head in own]
        yield PlannedMode(
            mode=mode,
            adapters=sum(len(job.tasks) for job in of_mode),
            done=sum(len(job.tasks) for job in of_mode if job.done(context)),
            steps=config.training.steps,
            learning_rate=config.learning_rate,
            sites=weight.sites,
            trainable=(min(trainable), max(trainable)),
            size=sum(len(job.tasks) * (weight.size + head.size) for job, head in zip(of_mode, own, strict=True)),
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
