"""The report and the explorer of a run.

RUN/report.html, figures/, explorer-<mode>.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tangora import report
from tangora.report import explorer
from tangora.runs.jobs import Job, Resources
from tangora.support.files import digest
from tangora.support.source import source_digest
from tangora.support.version import package_version

if TYPE_CHECKING:
    from tangora.runs.context import Context

__all__ = ["ReportJob"]


@dataclass(frozen=True)
class ReportJob(Job):
    """Draw the report from the run's tables, as ``tangora report`` does."""

    kind: ClassVar[str] = "report"
    stage: ClassVar[str] = "report"

    @property
    def about(self) -> str:
        """The name of the output."""
        return "report"

    def run(self, context: Context) -> None:
        """Build the explorer of every mode that has one, then the report, which links to them."""
        context.progress.begin(self.label, 2)
        explorer.build_all(context.run, context.recipe)
        context.progress.advance(detail="explorer")
        report.build(context.run)
        context.progress.advance(detail="report.html")
        context.progress.end()

    def files(self, context: Context) -> list[Path]:
        """Return the page. It contains wall times, which do not matter since no job reads it."""
        return [context.run / "report.html"]


def report_job(tasks: Sequence[str], before: Sequence[Job]) -> ReportJob:
    """Return the job that ends a run."""
    inputs = tuple(job.key for job in before)
    key = digest(["report-1", package_version(), source_digest(report, explorer), inputs])
    return ReportJob(key, tuple(tasks), inputs, Resources(1.0, device=False))
