"""``tangora jobs``: the jobs of a run, and which of them are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tangora.cli.command import Command
from tangora.cli.options import Options, RunArgument, TrustOption
from tangora.cli.output import Output

if TYPE_CHECKING:
    from rich.table import Table

    from tangora.runs.preflight import PlannedJob

__all__ = ["COMMAND", "JobsOptions", "jobs"]


@dataclass(frozen=True, kw_only=True)
class JobsOptions(Options):
    """Which run."""

    run: RunArgument
    trust_remote_code: TrustOption = False


def jobs(options: JobsOptions, output: Output) -> None:
    """List the jobs of a run: key, kind, what it is about, and whether its files are there.

    The run must have been started once: then its recipe is in its folder.
    """
    from tangora.runs.context import Context  # deferred: imports torch
    from tangora.runs.preflight import PlannedJob
    from tangora.runs.runner import missing

    context = Context.open(options.run, trust_remote_code=options.trust_remote_code)
    with output.progress() as progress:
        context.progress = progress
        listed = PlannedJob.of(context.plan, missing(context))
    done = sum(job.done for job in listed)
    output.result({"run": options.run, "jobs": listed}, _table(listed), f"{done} of {len(listed)} jobs are done")


def _table(listed: Sequence[PlannedJob]) -> Table:
    from rich import box  # deferred: with the table
    from rich.table import Table  # deferred: --json needs none

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("key", "kind", "job", "done"):
        table.add_column(column, no_wrap=column in ("key", "done"), overflow="fold")
    for job in listed:
        table.add_row(job.key[:12], job.kind, job.label, "yes" if job.done else "")
    return table


COMMAND = Command(jobs, example="tangora jobs runs/quickstart")
