"""Jobs in the order of their numbers, on threads; a job may answer with more jobs.

The smallest number goes first, so that what follows from the work at hand is done before new work is begun: at most
as many tensors are open as there are threads, which is what keeps the memory flat.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from threading import Condition, Thread
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Job", "run_jobs"]

_Lane = TypeVar("_Lane")


class Job(NamedTuple, Generic[_Lane]):
    """What to do, and when: ``order`` is compared, and differs between any two jobs that are waiting at once."""

    order: tuple[int, ...]
    run: Callable[[_Lane], Iterable[Job[_Lane]]]


class _Queue(Generic[_Lane]):
    def __init__(self, jobs: Iterable[Job[_Lane]]) -> None:
        self.waiting = list(jobs)
        heapq.heapify(self.waiting)
        self.running, self.changed = 0, Condition()
        self.failure: BaseException | None = None

    def work(self, make: Callable[[], _Lane]) -> None:
        try:
            lane = make()
            while (job := self._next()) is not None:
                more = list(job.run(lane))
                with self.changed:
                    for each in more:
                        heapq.heappush(self.waiting, each)
                    self.running -= 1
                    self.changed.notify_all()
        except BaseException as error:
            self.stop(error)

    def _next(self) -> Job[_Lane] | None:
        with self.changed:
            while self.failure is None and not self.waiting and self.running:
                self.changed.wait()
            if self.failure is not None or not self.waiting:
                return None
            self.running += 1
            return heapq.heappop(self.waiting)

    def stop(self, error: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()


def run_jobs(jobs: Iterable[Job[_Lane]], make: Callable[[], _Lane], threads: int) -> None:
    """Run all jobs, and those they lead to; the first error stops the others and is raised.

    Args:
        jobs: to begin with.
        make: called in each thread, for its lane.
        threads: how many.
    """
    queue: _Queue[_Lane] = _Queue(jobs)
    workers = [Thread(target=queue.work, args=(make,), name=f"fuse-{i}", daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(0.5)  # a signal reaches the main thread between two of these
    except BaseException as error:
        queue.stop(error)
        for worker in workers:
            worker.join()
        raise
    if queue.failure is not None:
        raise queue.failure
