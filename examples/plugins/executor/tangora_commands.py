"""An executor that does every job by a command: ``tangora job RUN KEY``.

It is the pattern for a cluster: put the submission of a batch job in place of `_command`, on a disk that every machine
sees, and ask for the result as the scheduler offers it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from tangora.config.settings import Frozen
from tangora.errors import TangoraError
from tangora.runs.events import Event, OnEvent
from tangora.runs.jobs import Job

__all__ = ["EXECUTOR"]


class CommandsSettings(Frozen):
    """How the command begins."""

    prefix: tuple[str, ...] = ()  # such as ["srun", "--gres=gpu:1"]


class Commands:
    """Does the jobs one after the other, each in a process of its own that ends with it.

    Choose it if a job must not share its memory with the next.
    """

    name = "commands"
    settings = CommandsSettings

    def run(self, jobs: Sequence[Job], context: Any, settings: CommandsSettings, on_event: OnEvent) -> None:
        """Do the jobs; see `tangora.runs.contract.Executor`."""
        for job in jobs:
            on_event(Event(job.key, "started", label=job.label))
            began = time.perf_counter()
            done = _command([*settings.prefix, sys.executable, "-m", "tangora", "job", str(context.run), job.key])
            seconds = time.perf_counter() - began
            if done.returncode == 0:
                on_event(Event(job.key, "done", label=job.label, seconds=seconds))
                continue
            said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            on_event(Event(job.key, "failed", label=job.label, seconds=seconds, error=said))
            raise TangoraError(f"a job failed: {said}", where=job.label, fix=f"see {context.run}/run.log")


def _command(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, or end it: `subprocess.run` kills it if this process is interrupted."""
    return subprocess.run(words, capture_output=True, text=True, check=False)


EXECUTOR = Commands()
