"""``tangora analyze``: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tangora.cli.terminal import bars, show

__all__ = ["analyze"]


def analyze(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="A+B,...", help="Tasks whose plane is looked at; or: all.")
    ] = None,
    modes: Annotated[str | None, typer.Option("--modes", metavar="M,...", help="Only these modes.")] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="KIND,...", help="Of signs, angles, planes, linearity.")
    ] = None,
    points: Annotated[int, typer.Option("--points", help="Of a plane's grid, on [0, 1] in each direction.")] = 6,
    margin: Annotated[float, typer.Option("--margin", help="How far the grid goes beyond 0 and 1.")] = 0.4,
    rows: Annotated[int, typer.Option("--rows", help="At most so many rows of a task.")] = 128,
    split: Annotated[str, typer.Option("--split", help="Whose rows: train, validation or test.")] = "validation",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done at what cost, and stop.")] = False,
) -> None:
    """Look into a run's experts: do they disentangle, conflict, overlap, behave linearly? Adds it to the report."""
    from tangora.runs.stages.analysis_plan import KINDS, Plan, Settings

    settings = Settings(
        only=_split(only) or KINDS,
        modes=_split(modes),
        pairs=pairs,
        points=points,
        margin=margin,
        rows=rows,
        split=split,
    )
    plan = Plan(run, settings)
    show(*plan.lines())
    if dry_run:
        return
    from tangora.runs.stages.analysis import analyze as analyze_run

    with bars() as progress:
        page = analyze_run(plan, progress)
    from tangora.report.data import read_run
    from tangora.report.summary import Summary
    from tangora.report.tables import terminal_analyses

    show(terminal_analyses(Summary(read_run(run))))
    print(f"report: {page.resolve()}")


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []
