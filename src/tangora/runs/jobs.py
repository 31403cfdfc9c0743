"""A job: one step of a run as a value, which can be sent to another process and done there.

A run is a plan of jobs (`tangora.runs.plan`). Each job reads the files of its input jobs, and writes its own files into
the run's folder. Its key is a hash of everything that determines these files, so a job with existing files need not be
done again. The kinds of jobs are in `tangora.runs.stages`, one module each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tangora.errors import OutputError
from tangora.support.files import file_digest, read_json, write_json

if TYPE_CHECKING:
    from tangora.runs.context import Context

__all__ = ["Job", "Resources", "record_file"]


@dataclass(frozen=True)
class Resources:
    """The cost of a job, for executors that place jobs and for estimates of the remaining time.

    Attributes:
        work: the number of rows that pass forward through the model; a backward pass counts as two. It is a guess,
            good enough to compare jobs of one kind.
        device: whether the job computes with the base model, and so needs the device of the run's machine. Other jobs
            read and write files, on one or two threads of a processor.
        known: whether ``work`` is complete. If not, the job includes a search of unknown length.
    """

    work: float = 1.0
    device: bool = True
    known: bool = True


@dataclass(frozen=True)
class Job(ABC):
    """One step of a run: a value that can be pickled and compared.

    A subclass is a frozen dataclass that adds plain values, such as the name of a mode. Base, tasks and adapters come
    from the context of the process that does the job.

    Attributes:
        kind: the kind of job, in a word.
        stage: the part of a run that it belongs to; ``run.json`` sums wall times by stage.
        key: sha-256 (hex) of everything that determines its files.
        tasks: names of the tasks that it works on.
        inputs: keys of the jobs whose files it reads.
        resources: its cost.
        seed: in a run of several seeds, the one that the job is done with; None if it is the same with all of them. It
            is no part of the key: a seed counts there as far as it changes the files.

    Methods are called with the run's context at this seed (`Context.at`).
    """

    kind: ClassVar[str]
    stage: ClassVar[str]
    key: str
    tasks: tuple[str, ...]
    inputs: tuple[str, ...]
    resources: Resources
    seed: int | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def about(self) -> str:
        """What the job does, such as ``lora · sst2``."""

    @property
    def label(self) -> str:
        """A readable name: what it does, and the seed if the run has several."""
        return self.about if self.seed is None else f"{self.about} · seed {self.seed}"

    @abstractmethod
    def run(self, context: Context) -> None:
        """Write the files, each of them atomically; report steps to ``context.progress``.

        Raises:
            TangoraError: the base, the data or an adapter is invalid, or a file cannot be written.
        """

    @abstractmethod
    def files(self, context: Context) -> list[Path]:
        """Return the files that contain the job's result; none of them contains a wall time."""

    def done(self, context: Context) -> bool:
        """Return whether the files exist, are complete, and were made from the current inputs.

        Only called if the inputs are done.
        """
        try:
            record = read_json(record_file(self, context.run), OutputError)
        except OutputError:
            return False
        return record.get("inputs") == self._inputs(context) and record.get("files") == _digests(self, context)

    def inputs_changed(self, context: Context) -> bool:
        """Return whether the job's record names other results of its inputs than the current ones.

        For jobs that check their files in another way; false if there is no record.
        """
        try:
            record = read_json(record_file(self, context.run), OutputError)
        except OutputError:
            return False
        return record.get("inputs") != self._inputs(context)

    def _inputs(self, context: Context) -> dict[str, str]:
        return {key: context.digest(key) for key in self.inputs}

    def digest(self, context: Context) -> str:
        """Return a hash of the result; jobs that read the result compare it to detect a change."""
        return hashlib.sha256(repr(sorted(_digests(self, context).items())).encode()).hexdigest()

    def recorded(self, context: Context) -> bool:
        """Return whether there is a record of the job."""
        return record_file(self, context.run).is_file()

    def confirm(self, context: Context) -> None:
        """Touch the record, after the job was found to be done: `tangora.runs.status` compares times."""
        with contextlib.suppress(OSError):
            os.utime(record_file(self, context.run))

    def record(self, context: Context, seconds: float | None) -> None:
        """Record inputs, files and duration, after the job has run; None if it was killed before this."""
        work = self.resources.work if self.resources.known else None
        facts = {"kind": self.kind, "label": self.label, "work": work, "seconds": seconds and round(seconds, 3)}
        write_json(
            record_file(self, context.run), {**facts, "inputs": self._inputs(context), "files": _digests(self, context)}
        )


def record_file(job: Job, run: Path) -> Path:
    """Return the place of a job's record in a run's folder."""
    return run / "cache" / "jobs" / f"{job.key}.json"


def _digests(job: Job, context: Context) -> Mapping[str, str]:
    """Return path in the run's folder -> sha-256 of the file, or an empty text if it is missing."""
    return {
        path.relative_to(context.run).as_posix(): file_digest(path) if path.is_file() else ""
        for path in job.files(context)
    }
