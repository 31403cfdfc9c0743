"""Turn events of executors into progress on the terminal and wall times for ``run.json``."""

from __future__ import annotations

import time

from tangora.progress import Progress
from tangora.runs.estimate import Estimate
from tangora.runs.events import Event
from tangora.runs.folder import Clock
from tangora.runs.plan import Plan

__all__ = ["Listener"]

_PAUSE = 0.2  # seconds between two estimates: training reports every step


class Listener:
    """Receives the events of a run.

    If several jobs run at once, the progress shows one of them until it ends, and the run as a whole.

    Args:
        plan: the run's.
        progress: shows it to the user.
        clock: sums up the seconds of each stage.
        estimate: of the jobs to do.
    """

    def __init__(self, plan: Plan, progress: Progress, clock: Clock, estimate: Estimate) -> None:
        self._plan, self._progress, self._clock, self._estimate = plan, progress, clock, estimate
        self._shown: tuple[str, str, int] | None = None
        self._estimated = 0.0

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        self._estimate.take(event)
        if event.what == "progressed":
            self._part(event)
        elif event.what in ("done", "failed"):
            if event.seconds:
                self._clock.add(self._plan[event.key].stage, event.seconds)
            if self._shown is not None and self._shown[0] == event.key:
                self._end(done=event.what == "done")
        self._overall(at_once=event.what == "done")

    def _part(self, event: Event) -> None:
        part = (event.key, event.label, event.steps)
        if self._shown is not None and self._shown[0] != event.key:
            return
        if part != self._shown:
            self._end()
            self._shown = part
            self._progress.begin(event.label, event.steps)
        else:
            self._progress.update(event.step, event.detail)

    def _overall(self, at_once: bool) -> None:
        now = time.monotonic()
        if at_once or now - self._estimated >= _PAUSE:
            self._estimated = now
            self._progress.overall(self._estimate.state())

    def _end(self, *, done: bool = True) -> None:
        if self._shown is not None:
            self._shown = None
            if done:  # a part that failed stays as it is: nothing may say that it was done
                self._progress.end()
