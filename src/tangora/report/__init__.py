"""Present a run's files: figures, one HTML page, terminal tables and the explorer.

Everything here reads only the files of a run, so a report can be rebuilt anywhere from a copied folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tangora.report.data import read_run
from tangora.report.doubts import notes
from tangora.report.headline import headline
from tangora.report.ordinary import in_words
from tangora.report.summary import Summary
from tangora.report.tables import terminal_tables
from tangora.support.extras import require
from tangora.support.files import atomic_dir, write_text
from tangora.support.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["build", "terminal"]


def build(run: str | Path) -> Path:
    """Write ``RUN/figures/*.{png,pdf}`` and ``RUN/report.html`` from a run's files, and return the page's path.

    The same files give the same bytes. Sections with missing files are left out, with a note on the page.

    Raises:
        FileError: ``scores.csv`` is missing, or a file is invalid.
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
    """Return the headline and one table per mode for rich, in as many parts as the width requires.

    Raises:
        FileError: ``scores.csv`` is missing, or a file is invalid.
    """
    from rich.console import Group  # deferred: only printing needs it
    from rich.text import Text

    summary = Summary(read_run(Path(run)))
    ordinary = in_words(summary.run.both_ways, comparable=summary.direction != 0)
    sentences = [*headline(summary).sentences, ordinary, *notes(summary)]
    return Group(*terminal_tables(summary), Text(printable(" ".join(filter(None, sentences)))))
