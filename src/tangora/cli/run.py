"""``tangora run``: run a recipe, from data to report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.exits import traceback_goes_to
from tangora.cli.options import Options, OverwriteOption, RecipeArgument, SettingsOption, TrustOption
from tangora.cli.output import Output
from tangora.cli.rows import overview_document, overview_lines, overview_table
from tangora.cli.tables import plan_lines, plan_table

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe

__all__ = ["COMMAND", "RunOptions", "run"]

_SHOWN = 8  # warnings


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The recipe, and the folder of its results."""

    recipe: RecipeArgument
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder; default: runs/NAME.")] = None
    settings: SettingsOption = None
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="N,N,...", help="Do what depends on a seed once with each, and average."),
    ] = None
    trust_remote_code: TrustOption = False
    overwrite: OverwriteOption = False
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            help="Executor of jobs: serial, processes, ray, or another package's.",
            autocompletion=completion.executors,
        ),
    ] = None
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes of the executor.")] = None
    address: Annotated[
        str | None, typer.Option("--address", help="Cluster of the executor ray: local, auto, HOST:PORT, ray://...")
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="TEXT",
            help="Do only jobs with this in their label, and what they read; repeatable. tangora jobs lists labels.",
            autocompletion=completion.modes,
        ),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")] = False

    @property
    def all_settings(self) -> list[str]:
        """The settings, those that have options of their own included."""
        chosen = list(self.settings or [])
        if self.seeds is not None:
            chosen.append(f"seeds=[{self.seeds}]")
        given = {"workers": self.workers, "address": self.address}
        own = {key: value for key, value in given.items() if value is not None}
        if self.executor is None:
            return chosen + [f"executor.{key}={json.dumps(value)}" for key, value in own.items()]
        listed = ", ".join([f"name: {self.executor}", *(f"{key}: {json.dumps(value)}" for key, value in own.items())])
        return [*chosen, f"executor={{{listed}}}"]


def run(options: RunOptions, output: Output) -> None:
    """Fine-tune every task in every mode, fuse every subset, score, and write a report.

    A run that was killed goes on where it was when the same command is given again.
    """
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic

    recipe = load_recipe(options.recipe, options.all_settings, trust_remote_code=options.trust_remote_code)
    folder = options.out or Path("runs") / recipe.name
    if options.dry_run:
        _plan(recipe, folder, options, output)
        return
    traceback_goes_to(folder / "run.log")
    from tangora.runs.runner import run as run_recipe  # deferred: imports torch

    with output.progress() as progress:
        run_recipe(recipe, folder, overwrite=options.overwrite, only=options.only or (), progress=progress)
    if options.only:
        _left(folder, output)
        return
    from tangora.report import terminal  # deferred: only after a run
    from tangora.report.data import read_run
    from tangora.report.document import document
    from tangora.report.summary import Summary

    page = folder / "report.html"
    done = read_run(folder)
    measured = document(Summary(done))
    output.note(*(f"warning: {line}" for line in done.warnings[:_SHOWN]))
    if (more := len(done.warnings) - _SHOWN) > 0:
        output.note(f"and {more} more, in {folder / 'summary.json'}")
    output.result({"run": folder, "report": page, **measured}, terminal(folder), f"report: {page.resolve()}")


def _left(folder: Path, output: Output) -> None:
    """Say how much of a run is done, after a part of it."""
    from tangora.runs.status import status_of  # deferred: with psutil

    found = status_of(folder)
    if (tables := found.kinds.get("tables")) is not None and tables.left and (folder / "scores.csv").exists():
        output.note("warning: scores.csv and the other tables are of an earlier state of the run, until all is done")
    count = found.all
    line = f"{count.done} of {count.total} jobs are done; the same command without --only does the others"
    output.result({"run": folder, "jobs": count}, line)


def _plan(recipe: Recipe, folder: Path, options: RunOptions, output: Output) -> None:
    from tangora.runs.preflight import preflight  # deferred: imports torch

    with output.progress() as progress:
        plan = preflight(recipe, folder, progress, overwrite=options.overwrite, only=options.only or ())
    document = {"dry_run": True, **vars(plan), "size": plan.size, "rows": overview_document(plan.rows)}
    rows = (line for one in plan.rows.values() for line in overview_lines(one))
    output.result(document, overview_table(plan.rows), *rows, "", plan_table(plan), *plan_lines(plan))


COMMAND = Command(run, example="tangora run quickstart --set seed=1 --out runs/first")
