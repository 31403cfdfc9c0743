"""The jobs of a run that are waiting, running or done, for an executor that may do a job more than once. No Ray."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from tangora.runs.jobs import Job

__all__ = ["JobQueue"]

_Need = TypeVar("_Need", bound=Hashable)


@dataclass
class JobQueue(Generic[_Need]):
    """Jobs, in their order, by what they need.

    It takes time in proportion to the jobs and their inputs, once, and to the logarithm of the waiting jobs for each.

    Args:
        jobs: each after its inputs; inputs that are not among them are done.
        need_of: what a job needs. Jobs of one need are done by the same workers.
    """

    jobs: Sequence[Job]
    need_of: Callable[[Job], _Need]
    left: int = field(init=False)
    _place: dict[str, int] = field(init=False, repr=False)
    _missing: list[int] = field(init=False, repr=False)
    _readers: dict[str, list[int]] = field(default_factory=dict, repr=False)
    _ready: dict[_Need, list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.left = len(self.jobs)
        self._place = {job.key: place for place, job in enumerate(self.jobs)}
        self._missing = []
        for place, job in enumerate(self.jobs):
            inputs = {key for key in job.inputs if key in self._place}
            self._missing.append(len(inputs))
            for key in inputs:
                self._readers.setdefault(key, []).append(place)
            if not inputs:
                self._add(place)

    def ready(self) -> dict[_Need, int]:
        """Return need -> number of jobs that can start now."""
        return {need: len(places) for need, places in self._ready.items() if places}

    def take(self, need: _Need, wanted: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """Take the first job of this need that is wanted; None if there is none."""
        places, passed = self._ready.get(need, []), list[int]()
        found: Job | None = None
        while places and found is None:
            place = heapq.heappop(places)
            if wanted(self.jobs[place]):
                found = self.jobs[place]
            else:
                passed.append(place)
        for place in passed:
            heapq.heappush(places, place)
        return found

    def give_back(self, job: Job) -> None:
        """Let a job that was taken wait again."""
        self._add(self._place[job.key])

    def done(self, job: Job) -> None:
        """Count a job as done: those that only waited for it are ready."""
        self.left -= 1
        for place in self._readers.pop(job.key, ()):
            self._missing[place] -= 1
            if not self._missing[place]:
                self._add(place)

    def _add(self, place: int) -> None:
        heapq.heappush(self._ready.setdefault(self.need_of(self.jobs[place]), []), place)
