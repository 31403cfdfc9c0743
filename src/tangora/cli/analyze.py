"""``tangora analyze``: why the experts of a run fuse well, or do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options, RunArgument, SplitOption, TrustOption
from tangora.cli.output import Output

__all__ = ["COMMAND", "AnalyzeOptions", "analyze"]

_PLANES = "Planes and rows"


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions(Options):
    """What is analysed, and how finely."""

    run: RunArgument
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", metavar="A+B,...", help="Tasks whose planes are computed, or: all."),
    ] = None
    modes: Annotated[
        str | None,
        typer.Option("--modes", metavar="M,...", help="Only these modes.", autocompletion=completion.mode_lists),
    ] = None
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="KIND,...",
            help="Some of signs, angles, planes, linearity.",
            autocompletion=completion.analyses,
        ),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done at what cost, and stop.")] = False
    points: Annotated[
        int, typer.Option("--points", help="Of a plane's grid, on [0, 1] in each direction.", rich_help_panel=_PLANES)
    ] = 6
    margin: Annotated[
        float, typer.Option("--margin", help="How far the grid goes beyond 0 and 1.", rich_help_panel=_PLANES)
    ] = 0.4
    rows: Annotated[int, typer.Option("--rows", help="At most this many of each task.", rich_help_panel=_PLANES)] = 128
    split: SplitOption = "validation"
    trust_remote_code: TrustOption = False


def analyze(options: AnalyzeOptions, output: Output) -> None:
    """Look into a run's experts: do they disentangle, conflict, overlap, behave linearly? Adds it to the report."""
    from tangora.runs.stages.analysis_plan import KINDS, AnalysisPlan, AnalysisSettings  # deferred: imports torch

    settings = AnalysisSettings(
        only=_split(options.only) or KINDS,
        modes=_split(options.modes),
        pairs=options.pairs,
        points=options.points,
        margin=options.margin,
        rows=options.rows,
        split=options.split,
    )
    plan = AnalysisPlan(options.run, settings, options.trust_remote_code)
    lines = list(plan.lines())
    if options.dry_run:
        output.result({"run": options.run, "dry_run": True, "plan": lines}, *lines)
        return
    output.note(*lines)
    from tangora.runs.stages.analysis import analyze as analyze_run  # deferred: imports torch

    with output.progress() as progress:
        page = analyze_run(plan, progress)
    from tangora.report.data import read_run  # deferred: only after the analyses
    from tangora.report.summary import Summary
    from tangora.report.tables import terminal_analyses

    run = read_run(options.run)
    means = {mode: run.analyses.means(mode) for mode in run.analyses.modes}
    document = {"run": options.run, "analyses": means, "report": page}
    output.result(document, terminal_analyses(Summary(run)), f"report: {page.resolve()}")


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


COMMAND = Command(
    analyze,
    example="tangora analyze runs/text7 --only signs,angles",
    examples={_PLANES: "tangora analyze runs/text7 --only planes --points 11 --margin 0.5 --rows 64"},
)
