"""Progress as one rich bar per stage; plain lines where the output is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from tangora.progress import Progress

__all__ = ["Bars"]


class Bars(Progress):
    """Draws the current stage on stderr and keeps a finished line for each stage before it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=self._console,
            disable=not self._live,
        )
        self._stage: TaskID | None = None
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
        """A new bar."""
        self._label, self._total, self._done, self._started = label, total, 0, time.perf_counter()
        self._stage = self._rich.add_task(f"{label:<26}", total=total, detail="")

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Move the bar."""
        self.update(self._done + steps, detail)

    def update(self, done: int, detail: str = "") -> None:
        """Set the bar to ``done`` steps."""
        self._done = done
        if self._stage is not None:
            self._rich.update(self._stage, completed=done, detail=detail[:40])

    def end(self) -> None:
        """Keep the finished bar, without its last detail."""
        if self._stage is not None:
            self._rich.update(self._stage, completed=self._total, detail="")
            self._stage = None
        if not self._live:
            seconds = time.perf_counter() - self._started
            print(f"{self._label}: done in {seconds:.1f} s", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, style="dim", markup=False)
