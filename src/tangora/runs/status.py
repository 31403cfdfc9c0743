"""The state of a run, from its files alone: what is done, what runs where, and what is left. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tangora.errors import FileError
from tangora.runs.presence import Presence, driver_file, job_file, plan_file
from tangora.support.files import read_json

__all__ = ["Count", "Running", "Status", "status_of"]


@dataclass(frozen=True)
class Count:
    """The jobs of one kind.

    Attributes:
        done: those whose files are there.
        running: those that a process does now.
        left: the others.
    """

    done: int = 0
    running: int = 0
    left: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.done + self.running + self.left


@dataclass(frozen=True)
class Running:
    """A job that a process does, or did when it was killed.

    Attributes:
        key, kind, label: of the job.
        host, pid: of the process.
        since: when it began, in seconds since 1970.
        state: ``running``; ``dead``, if the process is gone; ``silent``, if it is on another host and gave no sign of
            life for long.
    """

    key: str
    kind: str
    label: str
    host: str
    pid: int
    since: float
    state: str


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Attributes:
        name: of the run.
        run: its folder.
        state: ``finished``: all jobs are done; ``running``; else ``stopped``.
        driver: the process of ``tangora run``; None if there is none.
        kinds: kind of job -> numbers, in the order of the plan.
        jobs: those that run, and those of processes that were killed.
    """

    name: str
    run: Path
    state: str
    driver: Presence | None
    kinds: Mapping[str, Count]
    jobs: Sequence[Running]

    @property
    def all(self) -> Count:
        """The jobs of all kinds."""
        counts = self.kinds.values()
        return Count(sum(c.done for c in counts), sum(c.running for c in counts), sum(c.left for c in counts))


def status_of(run: Path) -> Status:
    """Read the state of a run.

    A job counts as done if it has a record and was not left when the driver started, or if the record is newer.

    Raises:
        FileError: the folder has no list of jobs, or the list is not readable.
    """
    listed, started = _plan(run)
    recorded = _times(run / "cache" / "jobs")
    present = _times(run / "cache" / "locks")
    kinds: dict[str, Count] = {}
    running: list[Running] = []
    for key, kind, label, left in listed["jobs"]:
        count = kinds.get(kind, Count())
        at = recorded.get(key)
        if at is not None and (not left or at >= started):
            kinds[kind] = Count(count.done + 1, count.running, count.left)
            continue
        one = _running(run, key, kind, label) if key in present else None
        running += [one] if one is not None else []
        lives = one is not None and one.state == "running"
        kinds[kind] = Count(count.done, count.running + lives, count.left + (not lives))
    driver = Presence.read(driver_file(run))
    busy = (driver is not None and driver.state == "running") or any(count.running for count in kinds.values())
    state = "running" if busy else "stopped" if any(c.left for c in kinds.values()) else "finished"
    return Status(str(listed["name"]), run, state, driver, kinds, running)


def _plan(run: Path) -> tuple[dict[str, Any], int]:
    """Return the list of jobs, and when it was written."""
    path = plan_file(run)
    if not path.is_file():
        if not run.is_dir():
            fix = "give the folder of a run; one that was started a moment ago makes it once everything is imported"
            raise FileError("no such folder", where=run, fix=fix)
        what = "no run was started here, or by an earlier version"
        fix = "give the folder of a run; tangora jobs RUN reads those of earlier versions"
        raise FileError(what, where=run, fix=fix)
    listed, started = read_json(path), path.stat().st_mtime_ns
    jobs = listed.get("jobs")
    whole = isinstance(jobs, list) and all(isinstance(job, list) and len(job) == 4 for job in jobs)
    if not whole or "name" not in listed:
        raise FileError("not a list of jobs", where=path, fix="start tangora run again: it writes the list")
    return listed, started


def _times(folder: Path) -> dict[str, int]:
    """Return the key of each record in a folder -> when it was written, in ns: one pass, as there may be thousands."""
    found: dict[str, int] = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                with suppress(OSError):
                    found[entry.name.removesuffix(".json")] = entry.stat().st_mtime_ns
    return found


def _running(run: Path, key: str, kind: str, label: str) -> Running | None:
    one = Presence.read(job_file(run, key))
    return None if one is None else Running(key, kind, label, one.host, one.pid, one.since, one.state)
