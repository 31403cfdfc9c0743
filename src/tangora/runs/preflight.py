"""What a run would do, before it does it: jobs and their time, sites, trainable parameters, disk, what is there."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.table import Table
from torch import nn

from tangora.config.recipe import Recipe
from tangora.modes.contract import mode_of
from tangora.progress import Progress, duration
from tangora.runs.checks import check_methods
from tangora.runs.context import Context
from tangora.runs.estimate import measured_rates
from tangora.runs.folder import claim
from tangora.runs.runner import missing
from tangora.runs.stages.cells import cells
from tangora.runs.stages.experts import ExpertJob
from tangora.support.sizes import size_text
from tangora.tasks import make_readout

if TYPE_CHECKING:
    from tangora.tasks import Base, Task

__all__ = ["preflight"]


def preflight(recipe: Recipe, out: Path, progress: Progress, *, overwrite: bool = False) -> tuple[Table, str]:
    """Return the plan, with a row for each mode, and what it comes to; write nothing.

    Base and data are loaded, so that their errors surface before training starts.

    Raises:
        TangoraError: as `tangora.runs.runner.run` would.
    """
    check_methods(recipe)
    claim(out, recipe, overwrite)
    context = Context(out, recipe, progress)
    context.load()
    experts = [job for job in context.plan if isinstance(job, ExpertJob)]
    heads = {task.name: _head_footprint(task, context.base) for task in context.tasks.values()}
    table = Table(title=f"{recipe.name} -> {out}", box=None, header_style="bold", title_justify="left")
    for column in ("mode", "adapters", "cached", "steps each", "rate", "sites", "trainable", "disk"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    total = 0
    for mode in recipe.modes:
        config = recipe.finetune_config(mode)
        of_mode = [job for job in experts if job.mode == mode]
        weight = mode_of(config).footprint(context.base, config)
        own = [_Head.sum_of(heads[task] for task in job.tasks) for job in of_mode]  # each adapter has all of its job's
        size = sum(len(job.tasks) * (weight.size + head.size) for job, head in zip(of_mode, own, strict=True))
        total += size
        table.add_row(
            mode,
            str(sum(len(job.tasks) for job in of_mode)),
            str(sum(len(job.tasks) for job in of_mode if job.done(context))),
            str(config.training.steps),
            f"{config.learning_rate:g}",
            str(weight.sites),
            _span({weight.trainable + head.trainable for head in own}),
            size_text(size),
        )
    return table, f"{_totals(recipe, context.names, total, out)}\n{_jobs(context)}"


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


def _span(counts: Collection[int]) -> str:
    """One number, or the smallest and the largest: heads of tasks with more classes have more parameters."""
    return " to ".join(f"{count:,}" for count in dict.fromkeys([min(counts), max(counts)]))


def _jobs(context: Context) -> str:
    """How many jobs are left, and how long they take if jobs of this run have been measured."""
    left, rates = missing(context), measured_rates(context.run)
    planned = f"{len(context.plan)} jobs, {len(context.plan) - len(left)} done"
    if not left:
        return planned
    if not rates.measured:
        return f"{planned}; how long they take is known after the first ones"
    seconds = sum(rates.seconds(job) for job in left)
    return f"{planned}; the others take about {duration(seconds)} in one process"


def _totals(recipe: Recipe, tasks: Sequence[str], total: int, out: Path) -> str:
    planned = list(cells(recipe))
    subsets = len({c.subset for c in planned})
    nearest = next(p for p in [out, *out.absolute().parents] if p.exists())
    return (
        f"{len(tasks)} tasks, {subsets} subsets, {len(planned)} comparisons; adapters take {size_text(total)}, "
        f"{size_text(shutil.disk_usage(nearest).free)} are free"
    )
