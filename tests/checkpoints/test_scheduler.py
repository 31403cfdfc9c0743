from __future__ import annotations

import threading
from functools import partial

import pytest

from tangora.checkpoints.scheduler import Step, run_steps


def test_what_follows_is_done_before_new_work_is_begun():
    order = []

    def step(name, follow, lane):
        order.append(name)
        return [Step((int(name[0]), 1), partial(step, name + "+", False))] if follow else []

    run_steps([Step((i, 0), partial(step, f"{i}", True)) for i in (2, 0, 1)], object, 1)
    assert order == ["0", "0+", "1", "1+", "2", "2+"]


def test_every_job_runs_once_on_any_number_of_threads():
    done, lock = [], threading.Lock()

    def step(i, lane):
        with lock:
            done.append((i, lane))
        return []

    run_steps([Step((i,), partial(step, i)) for i in range(50)], threading.get_ident, 4)
    assert sorted(i for i, _ in done) == list(range(50))


def test_the_first_error_stops_the_others_and_is_raised():
    def step(i, lane):
        if i == 3:
            raise ValueError("third")
        assert i < 40, "work went on long after the error"
        return []

    with pytest.raises(ValueError, match="third"):
        run_steps([Step((i,), partial(step, i)) for i in range(1000)], object, 2)


def test_an_error_in_making_a_lane():
    def broken():
        raise MemoryError

    with pytest.raises(MemoryError):
        run_steps([Step((0,), lambda lane: [])], broken, 2)
