"""Progress as rich's bars: one for the whole run and one for the job at hand; lines if nothing can be drawn over."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from tangora.cli.terminal import console as made_console
from tangora.cli.terminal import moves, say
from tangora.progress import Overall, Progress, duration
from tangora.support.printable import printable

__all__ = ["Bars"]


class Bars(Progress):
    """Draws on stderr: work of one part as a bar with its time, a run of many jobs as one bar above the job at hand.

    Every column but the last has a width that depends on the terminal alone, so that no label moves a bar.

    Args:
        console: where they are drawn; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or made_console(stderr=True)
        self._live = moves(self._console)
        label, bar = _widths(self._console.width)
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False, table_column=_cut(width=label)),
            BarColumn(bar_width=bar, table_column=Column(width=bar)),
            TaskProgressColumn("{task.percentage:>3.0f}%", table_column=Column(width=4)),
            TimeElapsedColumn(table_column=Column(width=8, justify="right")),
            TextColumn("{task.fields[detail]}", style="dim", markup=False, table_column=_cut(ratio=1)),
            console=self._console,
            disable=not self._live,
            expand=True,
        )
        self._whole: TaskID | None = None
        self._part: TaskID | None = None
        self._label, self._total, self._done, self._started = "", 0, 0, 0.0

    def __enter__(self) -> Bars:
        """Start drawing."""
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, whatever happened."""
        self._rich.stop()

    def begin(self, label: str, total: int) -> None:
        """Draw a new bar."""
        label = printable(label)
        self._label, self._total, self._done, self._started = label, total, 0, time.perf_counter()
        self._part = self._rich.add_task(label, total=total or None, detail="")

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Move the bar."""
        self.update(self._done + steps, detail)

    def update(self, done: int, detail: str = "") -> None:
        """Set the bar to ``done`` steps."""
        self._done = done
        if self._part is not None:
            steps = f"{done}/{self._total}" if self._total else ""
            self._rich.update(self._part, completed=done, detail=_joined(self._left(), steps, printable(detail)))

    def end(self) -> None:
        """Keep the finished bar, unless it is that of one job among others."""
        if self._part is not None and self._whole is not None:
            self._rich.remove_task(self._part)
        elif self._part is not None:
            self._rich.update(self._part, completed=self._total, detail="")
        self._part = None
        if not self._live:
            seconds = time.perf_counter() - self._started
            say(f"{self._label}: done in {seconds:.1f} s")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        if self._live:
            self._console.print(printable(text), style="dim", markup=False, emoji=False)
        else:
            say(text)

    def overall(self, state: Overall) -> None:
        """Move the bar of the whole run."""
        if self._whole is None:
            self._whole = self._rich.add_task("run", total=1.0, detail="")
        left = state.left("estimating")
        if state.jobs and state.done == state.jobs:
            left = ""
        detail = _joined(left, f"job {state.done}/{state.jobs}" if state.jobs else "")
        self._rich.update(
            self._whole, description=_joined("run", printable(state.stage)), completed=state.fraction, detail=detail
        )

    def _left(self) -> str:
        """The time that a part takes from here on, if no bar of a whole run says so."""
        seconds = time.perf_counter() - self._started
        if self._whole is not None or seconds < 1 or not 0 < self._done < self._total:
            return ""
        return f"about {duration(seconds * (self._total - self._done) / self._done)} left"


def _widths(terminal: int) -> tuple[int, int]:
    """Columns of a label and of a bar."""
    if terminal >= 110:
        return 40, 24
    return (20, 10) if terminal >= 72 else (16, 6)


def _cut(*, width: int | None = None, ratio: int | None = None) -> Column:
    """A column of one line, with an ellipsis if the text is longer."""
    return Column(width=width, ratio=ratio, no_wrap=True, overflow="ellipsis")


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
