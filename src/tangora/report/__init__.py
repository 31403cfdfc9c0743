"""A run's files, made legible: figures, one HTML page, terminal tables; and an adapter's model card.

Everything here reads the files of a run and nothing else, so a report can be built again, anywhere, from a
copied folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tangora.report.data import read_run
from tangora.report.headline import headline
from tangora.report.summary import Summary
from tangora.report.tables import terminal_tables
from tangora.support.extras import require
from tangora.support.files import atomic_dir, write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["build", "terminal"]


def build(run: str | Path) -> Path:
    """Write ``RUN/figures/*.{png,pdf}`` and ``RUN/report.html`` from the files of a run; the page's path.

    The same files give the same bytes. A section whose file is absent is left out, and the page says so.

    Raises:
        FileError: ``scores.csv`` is missing, or a file is there and cannot be right.
        OutputError: the folder cannot be written.
        MissingExtraError: the extra ``report`` is not installed.
    """
    require("report", purpose="a report")
    from tangora.report.html import draw_all, page  # deferred: an extra, and matplotlib takes a second

    folder = Path(run)
    summary = Summary(read_run(folder))
    with atomic_dir(folder / "figures") as scratch:
        drawings = draw_all(summary, scratch)
    write_text(folder / "report.html", page(summary, drawings))
    return folder / "report.html"


def terminal(run: str | Path) -> RenderableType:
    """The headline and one table per mode, to be printed by rich, in as many parts as the width needs.

    Raises:
        FileError: ``scores.csv`` is missing, or a file is there and cannot be right.
    """
    from rich.console import Group  # deferred: a tenth of a second, for those who print
    from rich.text import Text

    summary = Summary(read_run(Path(run)))
    return Group(*terminal_tables(summary), Text(" ".join(headline(summary).sentences)))
