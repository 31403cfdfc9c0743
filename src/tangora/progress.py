"""How work reports how far it is: `Progress` ignores it, and its subclasses show it to a person.

Work that has one part reports it by `Progress.begin`, `advance` or `update`, and `end`. A run of many jobs also reports
`Progress.overall` after every step, so that one bar can show all of it. Functions for Python take
``progress: Progress | bool | None``, which `shown` resolves: by default a line in a terminal or a notebook, and nothing
elsewhere. Those of `tangora.api` and the command line draw bars in its place (`tangora.cli.bars`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

__all__ = ["Line", "Overall", "Progress", "duration", "shown", "watched"]


@dataclass(frozen=True)
class Overall:
    """How far a run is, over all of its stages.

    Attributes:
        fraction: of the work, in [0, 1]; it never falls.
        remaining: estimated seconds that the rest takes; None while there is nothing to estimate from.
        done: jobs that are done.
        jobs: how many there are.
        stage: what the run is at, such as ``fine-tune``.
        unknown: whether a job that is left does not say how much it does, so that ``remaining`` cannot be estimated.
    """

    fraction: float
    remaining: float | None
    done: int
    jobs: int
    stage: str
    unknown: bool = False

    def left(self, otherwise: str) -> str:
        """Return the time that is left, in words; ``otherwise`` while there is nothing to estimate from."""
        if self.unknown:
            return "time left unknown"
        return otherwise if self.remaining is None else f"about {duration(self.remaining)} left"


class Progress:
    """Receives what work reports; this one ignores it.

    A part of the work begins with a label and a total of steps, advances, and ends. Parts do not nest.
    """

    def begin(self, label: str, total: int) -> None:
        """Take note that a part of ``total`` steps begins; 0 if the number is not known."""

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Take note that ``steps`` more are done; ``detail`` names what is being worked on."""

    def update(self, done: int, detail: str = "") -> None:
        """Take note that ``done`` steps are done in all, those of an earlier process included."""

    def end(self) -> None:
        """Take note that the part is over."""

    def note(self, text: str) -> None:
        """Take note of something worth a line of its own."""

    def overall(self, state: Overall) -> None:
        """Take note of how far the whole run is."""


class Line(Progress):
    """Shows progress as one line that is written over, for a notebook or a plain terminal.

    Args:
        stream: where the line is written; stderr by default.
        width: characters of the bar.
    """

    def __init__(self, stream: TextIO | None = None, width: int = 24) -> None:
        self._stream, self._width = stream or sys.stderr, width
        self._label, self._total, self._done, self._detail = "", 0, 0, ""
        self._overall: Overall | None = None
        self._written, self._last = 0, 0.0

    def begin(self, label: str, total: int) -> None:
        """Show the label."""
        self._label, self._total, self._done, self._detail = label, total, 0, ""
        self._show(at_once=True)

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Move the bar."""
        self.update(self._done + steps, detail)

    def update(self, done: int, detail: str = "") -> None:
        """Move the bar."""
        self._done, self._detail = done, detail
        self._show(at_once=done >= self._total)

    def end(self) -> None:
        """Leave the line, unless it belongs to a whole run."""
        self._detail = ""
        if self._overall is None:
            self._show(at_once=True)
            self.close()

    def note(self, text: str) -> None:
        """Write a line of its own."""
        self.close()
        print(text, file=self._stream, flush=True)

    def overall(self, state: Overall) -> None:
        """Show the whole run from now on."""
        self._overall = state
        self._show()

    def close(self) -> None:
        """End the line."""
        if self._written:
            print(file=self._stream, flush=True)
            self._written = 0

    def _show(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if now - self._last < 0.2 and not at_once:
            return
        self._last, text = now, " ".join(self._parts())
        print("\r" + text.ljust(self._written), end="", file=self._stream, flush=True)
        self._written = len(text)

    def _parts(self) -> Iterator[str]:
        steps = f"{self._done}/{self._total}" if self._total else ""
        if self._overall is None:
            fraction = self._done / self._total if self._total else 0.0
            yield from (self._label, self._bar(fraction), steps)
        else:
            yield self._bar(self._overall.fraction)
            yield f"{self._overall.fraction:.0%}, {self._overall.left('...')}:"
            yield from (self._label, steps)
        yield self._detail[:30]

    def _bar(self, fraction: float) -> str:
        full = round(self._width * min(1.0, max(0.0, fraction)))
        return "[" + "#" * full + "." * (self._width - full) + "]"


@contextmanager
def shown(progress: Progress | bool | None = None) -> Iterator[Progress]:
    """Return what to report progress to, for the length of the block.

    Args:
        progress: a `Progress` is used as it is; True shows a line on stderr; False shows nothing; None shows a line
            only in a terminal or a notebook.

    >>> with shown(False) as progress:
    ...     progress.begin("train", 10)
    """
    if isinstance(progress, Progress):
        yield progress
        return
    if not (progress if progress is not None else watched()):
        yield Progress()
        return
    line = Line()
    try:
        yield line
    finally:
        line.close()


def watched() -> bool:
    """Return whether somebody reads what this process draws: stderr is a terminal, or a cell of a notebook runs.

    That a kernel is installed or imported says nothing: libraries import ipykernel in plain scripts, too.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    return hasattr(shell, "kernel")


def duration(seconds: float) -> str:
    """Format a duration for a person.

    >>> [duration(s) for s in (0.4, 59, 61, 3600, 100_000)]
    ['0.4 s', '59 s', '1 min', '1 h 00 min', '27 h 47 min']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
