"""Progress: what a person sees, and how far a run is said to be."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest

import tangora
from tangora.progress import Line, Overall, Progress, shown, watched
from tangora.runs.estimate import Estimate, Rates, measured_rates
from tangora.runs.events import Event, Reporter
from tangora.runs.jobs import Job, Resources
from tangora.runs.listener import Listener
from tangora.runs.plan import Plan


@dataclass(frozen=True)
class Toy(Job):
    kind: ClassVar[str] = "expert"
    stage: ClassVar[str] = "fine-tune"

    about = "toy"

    def run(self, context):
        raise AssertionError

    def files(self, context):
        return []


def toys(*work):
    return [Toy(f"job {i}", (), (), Resources(w)) for i, w in enumerate(work)]


def test_a_line_shows_a_part_and_ends():
    stream = io.StringIO()
    line = Line(stream, width=4)
    line.begin("train", 4)
    line.update(4, "loss 0.5")
    line.end()
    assert stream.getvalue().splitlines()[-1].rstrip() == "train [####] 4/4"


def test_a_line_shows_the_whole_run_and_the_time_that_is_left():
    stream = io.StringIO()
    line = Line(stream, width=4)
    line.overall(Overall(0.5, 180.0, 3, 6, "fine-tune"))
    line.begin("lora · one", 10)
    assert "[##..] 50%, about 3 min left: lora · one 0/10" in stream.getvalue()


@pytest.mark.parametrize(("asked", "kind"), [(False, Progress), (True, Line), (None, Progress)])
def test_what_is_shown_by_default_is_for_somebody_who_watches(asked, kind):
    with shown(asked) as progress:
        assert type(progress) is kind
    own = Progress()
    with shown(own) as progress:
        assert progress is own


@pytest.mark.parametrize(
    ("shell", "watching"), [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)]
)
def test_a_kernel_that_runs_is_watched_and_one_that_is_imported_is_not(shell, watching, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert watched() is watching
    monkeypatch.setattr("sys.stderr", None)
    assert watched() is watching


class Heard(Progress):
    """Records its calls."""

    def __init__(self):
        self.calls = []

    def begin(self, label, total):
        self.calls.append(("begin", label, total))

    def update(self, done, detail=""):
        self.calls.append(("update", done))

    def end(self):
        self.calls.append(("end",))


class Seconds:
    """A clock that only adds up."""

    def __init__(self):
        self.seconds = {}

    def add(self, stage, seconds):
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def test_of_jobs_that_are_done_at_once_one_is_shown_until_it_ends():
    jobs, heard, clock = toys(1.0, 1.0), Heard(), Seconds()
    listener = Listener(Plan(tuple(jobs)), heard, clock, Estimate(jobs, Rates()))
    for event in (
        Event("job 0", "started"),
        Event("job 0", "progressed", 0, 2, "first"),
        Event("job 1", "progressed", 0, 2, "second"),
        Event("job 0", "progressed", 1, 2, "first"),
        Event("job 0", "done", seconds=1.5),
        Event("job 1", "progressed", 1, 2, "second"),
        Event("job 1", "failed", seconds=0.5),
    ):
        listener(event)
    # nothing says that the one that failed was done
    assert heard.calls == [("begin", "first", 2), ("update", 1), ("end",), ("begin", "second", 2)]
    assert clock.seconds == {"fine-tune": 2.0}


def test_a_reporter_makes_events_of_progress():
    seen = []
    reporter = Reporter("job", seen.append)
    reporter.begin("train", 3)
    reporter.advance(detail="a")
    reporter.update(3)
    assert [(e.what, e.step, e.steps, e.label, e.detail) for e in seen] == [
        ("progressed", 0, 3, "train", ""),
        ("progressed", 1, 3, "train", "a"),
        ("progressed", 3, 3, "train", ""),
    ]


def test_a_measured_job_tells_how_long_the_others_take():
    jobs = toys(100.0, 100.0, 200.0)
    estimate = Estimate(jobs, Rates())
    assert estimate.state().remaining is None
    estimate.take(Event("job 0", "started"))
    estimate.take(Event("job 0", "done", seconds=10.0))
    state = estimate.state()
    assert state.remaining == pytest.approx(30.0, abs=0.2)  # 100 + 200 at 10 s a hundred, and what every job takes
    assert state.fraction == pytest.approx(0.25, abs=0.01)
    assert (state.done, state.jobs, state.stage) == (1, 3, "fine-tune")


def test_the_time_is_unknown_while_a_job_does_not_say_how_much_it_does():
    jobs = [*toys(100.0, 100.0), Toy("searches", (), (), Resources(1.0, known=False))]
    estimate = Estimate(jobs, Rates())
    estimate.take(Event("job 0", "started"))
    estimate.take(Event("job 0", "done", seconds=10.0))
    state = estimate.state()
    assert (state.remaining, state.unknown, state.left("estimating")) == (None, True, "time left unknown")
    estimate.take(Event("searches", "started"))
    assert estimate.state().unknown
    estimate.take(Event("searches", "progressed", step=1, steps=2))
    assert not estimate.state().unknown, "its own steps say how far it is"
    estimate.take(Event("searches", "done", seconds=1000.0))
    state = estimate.state()
    assert state.remaining == pytest.approx(10.0, abs=0.2), "the other one takes as long as the first one"
    assert state.left("estimating") == "about 10 s left"


def test_the_fraction_never_falls_and_ends_at_one():
    jobs = toys(100.0, 100.0)
    estimate, seen = Estimate(jobs, Rates()), []
    for key, seconds in (("job 0", 1.0), ("job 1", 50.0)):
        estimate.take(Event(key, "started"))
        seen.append(estimate.state().fraction)
        estimate.take(Event(key, "progressed", step=1, steps=2))
        seen.append(estimate.state().fraction)
        estimate.take(Event(key, "done", seconds=seconds))
        seen.append(estimate.state().fraction)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_records_of_earlier_jobs_are_read_and_broken_ones_left_out(tmp_path):
    folder = tmp_path / "cache" / "jobs"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps({"kind": "expert", "work": 10.0, "seconds": 5.0}))
    (folder / "b.json").write_text("{")
    (folder / "c.json").write_text(json.dumps({"kind": "expert", "work": None, "seconds": 500.0}))
    assert measured_rates(tmp_path).seconds(toys(20.0)[0]) == pytest.approx(10.05)


@pytest.mark.parametrize(
    ("watched", "asked", "kind"),
    [(True, None, "Bars"), (False, None, "Progress"), (True, False, "Progress"), (False, True, "Bars")],
)
def test_a_run_from_python_shows_bars_to_somebody_who_watches(monkeypatch, watched, asked, kind):
    seen = []
    monkeypatch.setattr("tangora.api.shown.watched", lambda: watched)
    monkeypatch.setattr("tangora.api.running.run_recipe", lambda *_, progress, **__: seen.append(type(progress)))
    tangora.run("recipe", "out", progress=asked)
    assert [one.__name__ for one in seen] == [kind]
