"""Run steps on threads in the order of their numbers; a step may return more steps.

The smallest number goes first, so that the steps which follow from a running one are done before new work is begun. At
most as many tensors are open as there are threads, which keeps the memory flat.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, TypeVar

__all__ = ["Step", "run_steps"]

_Lane = TypeVar("_Lane")


@dataclass(frozen=True)
class Step(Generic[_Lane]):
    """What to do, and when: the smallest ``order`` goes first; no two waiting steps have the same."""

    order: tuple[int, ...]
    run: Callable[[_Lane], Iterable[Step[_Lane]]]

    def __lt__(self, other: Step[_Lane]) -> bool:
        return self.order < other.order


class _Queue(Generic[_Lane]):
    def __init__(self, steps: Iterable[Step[_Lane]]) -> None:
        self.waiting = list(steps)
        heapq.heapify(self.waiting)
        self.running, self.changed = 0, Condition()
        self.failure: BaseException | None = None

    def work(self, make: Callable[[], _Lane]) -> None:
        try:
            lane = make()
            while (step := self._next()) is not None:
                more = list(step.run(lane))
                with self.changed:
                    for each in more:
                        heapq.heappush(self.waiting, each)
                    self.running -= 1
                    self.changed.notify_all()
        except BaseException as error:
            self.stop(error)

    def _next(self) -> Step[_Lane] | None:
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


def run_steps(steps: Iterable[Step[_Lane]], make: Callable[[], _Lane], threads: int) -> None:
    """Run all steps, and those that they return; the first error stops the others and is raised.

    Args:
        steps: the first steps.
        make: called in each thread, for its lane.
        threads: the number of threads.
    """
    queue: _Queue[_Lane] = _Queue(steps)
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
