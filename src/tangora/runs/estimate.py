"""Estimate how long jobs take: a guess by kind at first, and a measurement once a job of the kind is done.

A job's ``resources.work`` is the amount of work, in rows that pass through the model. The time per unit depends on the
model and the machine, and is taken from the records of jobs in the run's folder. While a job with a search of unknown
length is left, the remaining time is unknown.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tangora.progress import Overall
from tangora.runs.events import Event
from tangora.runs.jobs import Job
from tangora.support.json_text import parse_json

__all__ = ["Estimate", "Rates", "measured_rates"]

_FLOOR = 0.05  # seconds that every job takes: reading, locking, writing
_FEW = 0.02  # fraction of a job's own steps below which they allow no estimate
_GUESSED: Mapping[str, float] = {"tables": 1e-4, "fused": 2.0, "report": 10.0}
"""Seconds per unit of work for kinds with work that is not counted in rows through the model."""
_PASS = 2e-3  # seconds for one row to pass forward through a small encoder on one core


@dataclass
class Rates:
    """Seconds per unit of work, by kind of job.

    Args:
        measured: kind -> (work, seconds), summed over the jobs that were done.
    """

    measured: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, kind: str, work: float, seconds: float) -> None:
        """Count a job that was done."""
        before = self.measured.get(kind, (0.0, 0.0))
        self.measured[kind] = (before[0] + work, before[1] + seconds)

    def seconds(self, job: Job) -> float:
        """Return the expected time of a job."""
        return _FLOOR + job.resources.work * self._rate(job.kind)

    def _rate(self, kind: str) -> float:
        if kind in self.measured:
            work, seconds = self.measured[kind]
            return seconds / max(work, 1e-9)
        if kind in _GUESSED:
            return _GUESSED[kind]
        passes = [
            seconds / max(work, 1e-9) for other, (work, seconds) in self.measured.items() if other not in _GUESSED
        ]
        return median(passes) if passes else _PASS


def measured_rates(run: Path) -> Rates:
    """Return the rates according to the records in a run's folder, without those of jobs of unknown work."""
    rates = Rates()
    for path in sorted((run / "cache" / "jobs").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            record = parse_json(path.read_text(encoding="utf-8"))
            rates.add(record["kind"], float(record["work"]), float(record["seconds"]))
    return rates


class Estimate:
    """The progress of a list of jobs, from the events of running ones.

    Args:
        jobs: those to do.
        rates: measured times.
    """

    def __init__(self, jobs: Sequence[Job], rates: Rates) -> None:
        self._jobs, self._rates = {job.key: job for job in jobs}, rates
        self._done: set[str] = set()
        self._began: dict[str, float] = {}
        self._steps: dict[str, float] = {}
        self._fraction, self._stage = 0.0, ""

    def take(self, event: Event) -> None:
        """Take an event into account."""
        job = self._jobs.get(event.key)
        if job is None:
            return
        if event.what == "started":
            self._began[event.key], self._stage = time.monotonic(), job.stage
        elif event.what == "progressed" and event.steps:
            self._steps[event.key] = min(1.0, event.step / event.steps)
        elif event.what in ("done", "failed"):
            self._began.pop(event.key, None)
            self._steps.pop(event.key, None)
            if event.what == "done":
                self._done.add(event.key)
                if event.seconds and job.resources.known:
                    self._rates.add(job.kind, job.resources.work, event.seconds)

    def state(self) -> Overall:
        """Return the current progress of all jobs."""
        spent = sum(self._rates.seconds(self._jobs[key]) for key in self._done)
        parts = [self._part(key) for key in self._began]
        waiting = sum(self._rates.seconds(job) for job in self._waiting())
        spent += sum(part[0] for part in parts)
        left = waiting + sum(part[1] for part in parts)
        self._fraction = max(self._fraction, spent / (spent + left) if spent + left else 1.0)
        unknown = any(not job.resources.known for job in self._waiting()) or any(map(self._is_unknown, self._began))
        known = not unknown and (self._done or any(self._steps.values()))
        remaining = left / max(1, len(parts)) if known else None
        return Overall(min(1.0, self._fraction), remaining, len(self._done), len(self._jobs), self._stage, unknown)

    def _waiting(self) -> Iterable[Job]:
        return (job for key, job in self._jobs.items() if key not in self._done and key not in self._began)

    def _is_unknown(self, key: str) -> bool:
        """Return whether neither the resources of a running job nor its own steps show its amount of work."""
        return not self._jobs[key].resources.known and self._steps.get(key, 0.0) <= _FEW

    def _part(self, key: str) -> tuple[float, float]:
        """Return the seconds spent and left of a running job, by its own steps if it has done any."""
        spent, fraction = time.monotonic() - self._began[key], self._steps.get(key, 0.0)
        if fraction > _FEW:
            return spent, spent * (1 - fraction) / fraction
        return spent, max(0.0, self._rates.seconds(self._jobs[key]) - spent)
