"""``tangora report``: rebuild a run's figures and page."""

from __future__ import annotations

from dataclasses import dataclass

from tangora.cli.command import Command
from tangora.cli.options import Options, RunArgument
from tangora.cli.output import Output

__all__ = ["COMMAND", "ReportOptions", "report"]


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """The run."""

    run: RunArgument


def report(options: ReportOptions, output: Output) -> None:
    """Build a run's figures and report.html again from its tables."""
    if not (options.run / "scores.csv").is_file():
        from tangora.config.recipe import no_run  # deferred: --help needs no pydantic

        raise no_run(options.run, "scores.csv")
    from tangora.report import build  # deferred: imports matplotlib

    page = build(options.run)
    output.result({"report": page}, f"report: {page.resolve()}")


COMMAND = Command(report, example="tangora report runs/quickstart")
