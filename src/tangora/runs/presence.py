"""Files that say what a process does while it does it: a record per job beside its lock, and one of the driver.

    RUN/cache/locks/<key>.json   the process that does the job; removed at the end of the job
    RUN/cache/driver.json        the process of ``tangora run``; removed at its end
    RUN/cache/plan.json          the jobs, and those that were left when the driver started

A process that is killed leaves its record. A reader recognizes it: on the same host the process is gone, and on others
the record has not been touched for a while. Only `tangora.runs.status` reads them; no job depends on them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from tangora.errors import TangoraError
from tangora.support.files import write_json
from tangora.support.json_text import parse_json

if TYPE_CHECKING:
    from tangora.runs.jobs import Job

__all__ = ["BEAT", "Presence", "driver_file", "job_file", "lock_file", "plan_file", "present", "write_plan"]

BEAT = 15.0
"""Seconds between two touches of a record."""
_SILENT = 8  # beats: clocks of hosts differ, and shared storage shows times late
_SAME = 2.0  # seconds by which two readings of one process's start may differ


@dataclass(frozen=True)
class Presence:
    """A process, and since when it does something.

    Attributes:
        host: name of the machine.
        pid: process id on that host.
        born: start of the process, in seconds since 1970: a pid is used again.
        since: when the record was written, likewise.
        seen: when the record was last touched, likewise.
    """

    host: str
    pid: int
    born: float
    since: float
    seen: float

    @classmethod
    def own(cls) -> Presence:
        """Return the presence of this process, from now on."""
        now = time.time()
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time(), now, now)

    @classmethod
    def read(cls, path: Path) -> Presence | None:
        """Return what a file says; None if there is none, or if it is not whole."""
        try:
            raw = parse_json(path.read_text(encoding="utf-8"))
            host, pid = str(raw["host"]), int(raw["pid"])
            return cls(host, pid, float(raw["born"]), float(raw["since"]), path.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None

    @property
    def state(self) -> Literal["running", "dead", "silent"]:
        """Whether the process runs: ``dead`` is certain, ``silent`` means that it gave no sign of life for long."""
        if self.host == socket.gethostname():
            return "running" if _lives(self.pid, self.born) else "dead"
        return "silent" if time.time() - self.seen > _SILENT * BEAT else "running"


def _lives(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - born) < _SAME
    except psutil.Error:
        return False


@contextlib.contextmanager
def present(path: Path) -> Iterator[None]:
    """Keep a record of this process for the length of the block, and touch it regularly.

    Nothing depends on it, so that a disk that is full ends no job here.
    """
    ended = threading.Event()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not atomically: the file is of use only while this process lives, and readers skip half of one.
        path.write_text(json.dumps(asdict(Presence.own())), encoding="utf-8")
    beat = threading.Thread(target=_beat, args=(path, ended.wait), daemon=True, name="tangora-beat")
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with contextlib.suppress(OSError):
            path.unlink()


def _beat(path: Path, wait: Callable[[float], bool]) -> None:
    while not wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def lock_file(run: Path, key: str) -> Path:
    """Return the lock of a job."""
    return run / "cache" / "locks" / f"{key}.lock"


def job_file(run: Path, key: str) -> Path:
    """Return the record of the process that does a job."""
    return run / "cache" / "locks" / f"{key}.json"


def driver_file(run: Path) -> Path:
    """Return the record of the driver's process."""
    return run / "cache" / "driver.json"


def plan_file(run: Path) -> Path:
    """Return the list of the run's jobs."""
    return run / "cache" / "plan.json"


def write_plan(run: Path, name: str, jobs: Sequence[Job], left: Sequence[Job]) -> None:
    """Write the list of jobs for readers that have neither torch nor time to make the plan again.

    Args:
        run: the run's folder.
        name: of the run.
        jobs: all of them, in order.
        left: those that are to be done now; some of them may have a record of an earlier time.
    """
    keys = {job.key for job in left}
    listed = [[job.key, job.kind, job.label, job.key in keys] for job in jobs]
    with contextlib.suppress(TangoraError):  # if the disk is full, the run's own error reports it
        write_json(plan_file(run), {"name": name, "jobs": listed})
