"""What happens to the jobs of a run, as values: executors report them, and a driver turns them into progress."""

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
        step: how many steps the job has done, of its current part.
        steps: how many steps this part has; 0 while that is not known.
        label: what the part is called.
        detail: what is being worked on.
        seconds: done or failed: how long it took, 0 if its files were there already.
        error: failed: what went wrong, in one line.
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
    """A job's progress as events.

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
        """Report how many steps are done."""
        self._step = done
        self._report(detail)

    def note(self, text: str) -> None:
        """Report a remark."""
        self._report(text)

    def _report(self, detail: str) -> None:
        self._on_event(Event(self._key, "progressed", self._step, self._steps, self._label, detail))
