"""Do one job, in any process, exactly once, and write its record."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from filelock import FileLock

from tangora.runs.events import Event, OnEvent, Reporter
from tangora.runs.presence import job_file, lock_file, present

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.jobs import Job

__all__ = ["perform"]

log = logging.getLogger("tangora")


def perform(job: Job, context: Context, on_event: OnEvent) -> bool:
    """Do a job unless it is done, and report events; return whether there was anything to do.

    Two processes never do the same job at once: the second waits for the first, and then has nothing to do.

    Args:
        job: a job with all inputs done.
        context: of the run, at any seed; the job's has its own progress for the length of the call.
        on_event: receives ``started``, ``progressed`` and ``done`` or ``failed``.

    Raises:
        Exception: the job's error, after it was reported.
    """
    context = context.at(job.seed)
    on_event(Event(job.key, "started", label=job.label))
    before, started, did = context.progress, time.perf_counter(), False
    context.progress = Reporter(job.key, on_event)
    try:
        with _locked(job, context):
            started = time.perf_counter()
            if did := not job.done(context):
                _run(job, context)
            else:
                job.confirm(context)
    except BaseException as error:
        spent, line = time.perf_counter() - started, f"{type(error).__name__}: {error}"
        on_event(Event(job.key, "failed", label=job.label, seconds=spent, error=line))
        raise
    finally:
        context.progress = before
    on_event(Event(job.key, "done", label=job.label, seconds=time.perf_counter() - started if did else 0.0))
    return did


def _run(job: Job, context: Context) -> None:
    log.info("%s: begun", job.label)
    started = time.perf_counter()
    job.run(context)
    context.changed(job.key)
    seconds = time.perf_counter() - started
    job.record(context, seconds)
    log.info("%s: done in %.1f s", job.label, seconds)


@contextlib.contextmanager
def _locked(job: Job, context: Context) -> Iterator[None]:
    """Hold the lock of the job, waiting for it if necessary; the system releases it when the process ends."""
    path = lock_file(context.run, job.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path), present(job_file(context.run, job.key)):
        yield
