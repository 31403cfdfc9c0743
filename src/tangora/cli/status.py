"""``tangora status``: what is done of a run, what runs where, and what is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli.command import Command
from tangora.cli.options import Options
from tangora.cli.output import Output
from tangora.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

    from tangora.runs.presence import Presence
    from tangora.runs.status import Running, Status

__all__ = ["COMMAND", "StatusOptions", "status"]

_STATES = {"running": "", "dead": " (dead)", "silent": " (silent)"}


@dataclass(frozen=True, kw_only=True)
class StatusOptions(Options):
    """Which run."""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, also while it runs.")]


def status(options: StatusOptions, output: Output) -> None:
    """Print what is done of a run, what runs where, and what is left.

    Everything is read from the run's folder, so that it works in any terminal and on any host that has the folder. A
    dead process is gone from this host; a silent one, on another host, has not touched its record for two minutes.
    """
    from tangora.runs.status import status_of  # deferred: with psutil

    found = status_of(options.run)
    document = {**vars(found), "all": found.all}
    output.result(document, *_lines(found), _kinds(found), *([""] if found.jobs else []), *_jobs(found))


def _lines(found: Status) -> Iterator[str]:
    count = found.all
    parts = [f"{count.done} of {count.total} jobs are done"]
    parts += [f"{count.running} running"] * bool(count.running) + [f"{count.left} left"] * bool(count.left)
    yield f"{found.name}: {found.state}, {', '.join(parts)}"
    if found.driver is not None:
        yield f"driver: {_process(found.driver)}"
    if found.state == "stopped":
        yield "it goes on with the command that started it"
    yield ""


def _process(one: Presence) -> str:
    return f"{one.host}, process {one.pid}, since {duration(time.time() - one.since)}{_STATES[one.state]}"


def _kinds(found: Status) -> Table:
    table = _table(("jobs", "left"), ("done", "right"), ("running", "right"), ("left", "right"))
    for kind, count in found.kinds.items():
        table.add_row(kind, *(str(n) if n else "" for n in (count.done, count.running, count.left)))
    return table


def _jobs(found: Status) -> Iterator[Table]:
    if not found.jobs:
        return
    table = _table(("job", "left"), ("host", "left"), ("process", "right"), ("since", "right"))
    for one in found.jobs:
        table.add_row(one.label, one.host, f"{one.pid}", _since(one))
    yield table


def _since(one: Running) -> str:
    return f"{duration(time.time() - one.since)}{_STATES[one.state]}"


def _table(*columns: tuple[str, str]) -> Table:
    from rich import box  # deferred: with the table
    from rich.table import Table  # deferred: --json needs none

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, side in columns:
        words = name in ("job", "jobs", "host")
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=not words, overflow="fold")
    return table


COMMAND = Command(status, example="tangora status runs/quickstart")
