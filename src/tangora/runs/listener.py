"""What executors report, as progress for a person and as wall times for ``run.json``."""

from __future__ import annotations

from tangora.progress import Progress
from tangora.runs.events import Event
from tangora.runs.folder import Clock
from tangora.runs.plan import Plan

__all__ = ["Listener"]


class Listener:
    """Receives the events of a run.

    Args:
        plan: the run's.
        progress: what a person sees.
        clock: sums up the seconds of each stage.
    """

    def __init__(self, plan: Plan, progress: Progress, clock: Clock) -> None:
        self._plan, self._progress, self._clock = plan, progress, clock
        self._shown: tuple[str, str, int] | None = None

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if event.what in ("done", "failed"):
            if event.seconds:
                self._clock.add(self._plan[event.key].stage, event.seconds)
            self._end()
        elif event.what == "progressed":
            part = (event.key, event.label, event.steps)
            if part != self._shown:
                self._end()
                self._progress.begin(event.label, event.steps)
                self._shown = part
            else:
                self._progress.update(event.step, event.detail)

    def _end(self) -> None:
        if self._shown is not None:
            self._shown = None
            self._progress.end()
