"""``tangora job``: do one job of a run, on any machine with access to its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli.command import Command
from tangora.cli.exits import traceback_goes_to
from tangora.cli.options import Options, RunArgument, TrustOption
from tangora.cli.output import Output
from tangora.errors import ArgumentError
from tangora.progress import Progress, duration

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.events import Event
    from tangora.runs.jobs import Job

__all__ = ["COMMAND", "JobOptions", "job"]


@dataclass(frozen=True, kw_only=True)
class JobOptions(Options):
    """The run, and the key of the job."""

    run: RunArgument
    key: Annotated[str, typer.Argument(metavar="KEY", help="The job's key, or a unique prefix of it.")]
    trust_remote_code: TrustOption = False


def job(options: JobOptions, output: Output) -> None:
    """Do one job of a run, unless its files are there.

    The run must have been started once, and what the job reads must be done; tangora jobs lists both. If another
    process is doing the job, wait for it.
    """
    from tangora.runs.context import Context  # deferred: imports torch
    from tangora.runs.execution import perform  # deferred: imports torch
    from tangora.runs.folder import logged  # deferred: with the context

    context = Context.open(options.run, trust_remote_code=options.trust_remote_code)
    traceback_goes_to(options.run / "run.log")
    chosen = context.plan.find(options.key)
    _refuse_missing_inputs(chosen, context)
    seconds = [0.0]

    def on_event(event: Event) -> None:
        if event.what == "done":
            seconds[0] = event.seconds
        elif event.what == "progressed":
            _show(progress, event)

    with output.progress() as progress, logged(options.run):
        did = perform(chosen, context, on_event)
    result = {"run": options.run, "key": chosen.key, "kind": chosen.kind, "label": chosen.label, "did": did}
    how = f"done in {duration(seconds[0])}" if did else "there already"
    output.result({**result, "seconds": round(seconds[0], 3)}, f"{chosen.label}: {how}")


def _refuse_missing_inputs(chosen: Job, context: Context) -> None:
    """Refuse a job if its inputs are not done.

    Raises:
        ArgumentError: names the first job that has to be done before.
    """
    from tangora.runs.runner import missing  # deferred: imports torch

    before = context.plan.before(chosen)
    if left := missing(context, before):
        what, first = f"the job reads what {len(left)} others write, which are not done", left[0]
        fix = f"do them first: tangora job {context.run} {first.key[:12]} ({first.label})"
        raise ArgumentError(what, got=chosen.key[:12], where="KEY", fix=fix)


def _show(progress: Progress, event: Event) -> None:
    if event.step == 0 and not event.detail:
        progress.begin(event.label, event.steps)
    else:
        progress.update(event.step, event.detail)


COMMAND = Command(job, example="tangora job runs/quickstart 3f2a91c04b7d")
