"""``tangora explore``: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["explore"]


def explore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    mode: Annotated[str | None, typer.Option("--mode", help="Which tangent mode; by default the first.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The page; default RUN/explorer-MODE.html.")] = None,
) -> None:
    """Write the fusion explorer: a page with a slider per task vector and exact scores at every move."""
    from tangora.report import build, explorer

    page = explorer.build(run, mode, out)
    print(f"explorer: {page.resolve()}")
    report = run / "report.html"
    if out is None and report.is_file() and f'href="{page.name}"' not in report.read_text(encoding="utf-8"):
        print(f"report: {build(run).resolve()}")
