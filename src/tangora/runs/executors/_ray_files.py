"""A run's files on nodes that share no storage: sent to a worker with a job, and back with its end.

    driver: RUN ── Shelf.pack: what the job may read ─▶ object store ─▶ unpack ── a worker's copy of RUN
            RUN ◀── Shelf.take: records last ──── object store ◀── pack ── what the job has written

A worker has a copy of its own. A job without inputs gets what every job reads, any other all results so far, except
those of other modes: which of them it reads is its own business. The driver knows which version of a file a copy has,
and sends it once. A file is sent in parts, so that neither side holds a large one whole. What comes back is written
atomically, and the record of a job after its files: a driver that is killed in between does the job again.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray

from tangora.runs.jobs import record_file
from tangora.runs.presence import BEAT, Presence, job_file
from tangora.support.files import atomic_file, writing

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.executors._ray_crew import Member
    from tangora.runs.jobs import Job

__all__ = ["Parcel", "Shelf", "pack", "unpack", "versions"]

_PART = 64 * 2**20  # bytes
_ALWAYS = ("cache/sources.json", "cache/threads.json", "cache/scores.jsonl")
"""What every job may read, if it is there."""
_OWN = ("recipe.yaml", "run.log", ".lock", "cache/locks/", "cache/driver.json", "cache/plan.json", "cache/training/")
"""What each process writes for itself."""
_OF_MODES = re.compile(r"(?:seeds/\d+/)?(?:adapters|statistics|fused|cache/columns|logs)/([^/]+)/")
"""Results of one mode."""


@dataclass(frozen=True)
class Parcel:
    """A file on its way.

    Attributes:
        path: in the run's folder, with slashes.
        version: of its content at the sender.
        parts: references to its bytes in the object store.
    """

    path: str
    version: str
    parts: tuple[Any, ...]


def versions(folder: Path) -> dict[str, str]:
    """Return path -> version of every file that belongs to the run, not to one process."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: _version(path) for name, path in found.items() if not name.startswith(_OWN)}


def pack(folder: Path, names: Iterable[str]) -> list[Parcel]:
    """Put files into the object store, from any process of the cluster."""
    return [Parcel(name, _version(folder / name), tuple(map(ray.put, _parts(folder / name)))) for name in names]


def unpack(folder: Path, parcels: Sequence[Parcel]) -> dict[str, str]:
    """Write files, each of them atomically, and return path -> version of what was written.

    Raises:
        RayError: their sender is gone.
        OutputError: a file cannot be written.
    """
    for parcel in parcels:
        path = folder / parcel.path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as staging, staging.open("wb") as file:
            for part in parcel.parts:
                file.write(ray.get(part))
    return {parcel.path: _version(folder / parcel.path) for parcel in parcels}


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(_PART):
            yield part


def _version(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _readable(name: str, job: Job) -> bool:
    """Return whether a job may read a file of the run."""
    found = _OF_MODES.match(name)
    own = found is None or getattr(job, "mode", found[1]) == found[1]
    return name in _ALWAYS or (bool(job.inputs) and own)


@dataclass
class Shelf:
    """The driver's side: the run's folder, and what each worker's copy of it contains.

    Args:
        context: of the run.
    """

    context: Context
    _there: dict[Member, dict[str, str]] = field(default_factory=dict)
    _present: dict[str, float] = field(default_factory=dict)

    def pack(self, member: Member, job: Job) -> list[Parcel]:
        """Return what a job may read, as far as its worker does not have it."""
        run, there = self.context.run, self._there.setdefault(member, {})
        wanted = {name: version for name, version in versions(run).items() if _readable(name, job)}
        parcels = pack(run, [name for name, version in wanted.items() if there.get(name) != version])
        there.update({parcel.path: parcel.version for parcel in parcels})
        self._mark(member, job)
        return parcels

    def take(self, member: Member, job: Job, parcels: Sequence[Parcel]) -> None:
        """Write what a job has made into the run's folder.

        Raises:
            RayError: the worker is gone.
            OutputError: a file cannot be written.
        """
        run, records = self.context.run, f"{record_file(job, Path()).parent.as_posix()}/"
        written = unpack(run, sorted(parcels, key=lambda parcel: parcel.path.startswith(records)))
        self.context.changed(job.key)
        self._there.setdefault(member, {}).update(written)

    def forget(self, member: Member) -> None:
        """Forget a worker that is gone."""
        self._there.pop(member, None)

    def _mark(self, member: Member, job: Job) -> None:
        """Record who does a job, where `tangora.runs.status` looks: the worker's own record is in its copy."""
        born = time.time()
        if member.host == platform.node() and psutil.pid_exists(member.pid):
            born = psutil.Process(member.pid).create_time()
        own = replace(Presence.own(), host=member.host, pid=member.pid, born=born)
        path = job_file(self.context.run, job.key)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(own)), encoding="utf-8")
        self._present[job.key] = time.monotonic()

    def unmark(self, job: Job) -> None:
        """Remove the record, at the end of a job."""
        self._present.pop(job.key, None)
        job_file(self.context.run, job.key).unlink(missing_ok=True)

    def touch(self) -> None:
        """Touch the records of jobs that go on, for readers on other hosts."""
        now = time.monotonic()
        for key, touched in self._present.items():
            if now - touched > BEAT:
                self._present[key] = now
                job_file(self.context.run, key).touch()
