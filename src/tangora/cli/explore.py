"""``tangora explore``: a page with a slider for each task vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options, RunArgument
from tangora.cli.output import Output

__all__ = ["COMMAND", "ExploreOptions", "explore"]


@dataclass(frozen=True, kw_only=True)
class ExploreOptions(Options):
    """The run, the mode, and the path of the page."""

    run: RunArgument
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="A tangent mode of the run; default: the first.", autocompletion=completion.modes),
    ] = None
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: RUN/explorer-MODE.html.")
    ] = None


def explore(options: ExploreOptions, output: Output) -> None:
    """Write the fusion explorer: a page with a slider for each task vector, and exact scores at every move."""
    from tangora.config.recipe import load_run_recipe  # deferred: --help needs no pydantic
    from tangora.support.extras import require

    require("report", purpose="the explorer")
    load_run_recipe(options.run)  # a folder that is no run, or closed, is refused before seconds of imports
    from tangora.report import build, explorer  # deferred: imports jinja2

    page, run = explorer.build(options.run, options.mode, options.out), options.run
    lines = [f"explorer: {page.resolve()}"]
    report = run / "report.html"
    if options.out is None and report.is_file() and f'href="{page.name}"' not in report.read_text(encoding="utf-8"):
        lines.append(f"report: {build(run).resolve()}")
    output.result({"explorer": page, "report": report if report.is_file() else None}, *lines)


COMMAND = Command(explore, example="tangora explore runs/text7-tangent")
