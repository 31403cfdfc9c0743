"""Events of a run's jobs: executors report them, and the driver of the run turns them into progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tangora.progress import Progress

__all__ = ["Event", "OnEvent", "Reporter"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        key: the job's.
        what: ``started``; ``progressed``, any number of times; then ``done`` or ``failed``, once.
        step: number of steps done of the job's current part.
        steps: number of steps of this part; 0 while unknown.
        label: name of the part.
        detail: description of the current step.
        seconds: for done or failed: the duration, 0 if the files existed already.
        error: for failed: the error in one line.
    """

    key: str
    what: Literal["started", "progressed", "done", "failed"]
    step: int = 0
    steps: int = 0
    label: str = ""
    detail: str = ""
    seconds: float = 0.0
    error: str = ""


OnEvent: TypeAlias = Callable[[Event], None]


class Reporter(Progress):
    """Reports a job's progress as events.

    Args:
        key: the job's.
        on_event: receives them.
    """

    def __init__(self, key: str, on_event: OnEvent) -> None:
        self._key, self._on_event = key, on_event
        self._label, self._step, self._steps = "", 0, 0

    def begin(self, label: str, total: int) -> None:
        """Report that a part of the job begins."""
        self._label, self._step, self._steps = label, 0, total
        self._report("")

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Report steps."""
        self.update(self._step + steps, detail)

    def update(self, done: int, detail: str = "") -> None:
        """Report the number of steps done."""
        self._step = done
        self._report(detail)

    def note(self, text: str) -> None:
        """Report a remark."""
        self._report(text)

    def _report(self, detail: str) -> None:
        self._on_event(Event(self._key, "progressed", self._step, self._steps, self._label, detail))
