"""The main loop of a worker process: do the jobs that arrive over a pipe, one after the other, until None arrives."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Finished", "Ready", "WorkerTraceback", "portable", "work"]


@dataclass(frozen=True)
class Ready:
    """The worker can receive jobs."""


@dataclass(frozen=True)
class Finished:
    """The worker has ended a job.

    Attributes:
        error: the job's error; None if it was done.
        trace: the traceback as text.
        parcels: what the job has written, if the worker has a copy of the run's folder.
    """

    error: BaseException | None = None
    trace: str = ""
    parcels: tuple[Any, ...] = ()


class WorkerTraceback(Exception):
    """The traceback of an error in another process, set as its cause, so that it appears in logs."""


def work(run: str, threads: int, trusted: bool, connection: Connection) -> None:
    """Do jobs until there are no more, the parent process has ended, or a signal stops this one.

    ``trusted``: the run's process may run code from the base model's repository.
    """
    # Set it before torch and BLAS are imported: they read it once.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends the workers
    signal.signal(signal.SIGTERM, _stop)
    import torch  # deferred: see above

    from tangora.runs.context import Context  # deferred: imports torch
    from tangora.runs.execution import perform  # deferred: with the context
    from tangora.runs.folder import logged  # deferred: with the context
    from tangora.runs.machine import machine_of

    torch.set_num_threads(threads)
    logging.captureWarnings(True)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as in the driver's terminal
    context = Context.open(Path(run), trust_remote_code=trusted)
    context.given_machine = replace(machine_of(context.recipe, context.run), threads=threads)
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt), logged(context.run):
        connection.send(Ready())
        while (job := connection.recv()) is not None:
            try:
                perform(job, context, connection.send)
            except Exception as error:
                connection.send(Finished(portable(error), traceback.format_exc()))
            else:
                connection.send(Finished())


def _stop(number: int, frame: FrameType | None) -> None:
    """End the current job as Ctrl-C does, so that no file is left partly written; ignore further signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def portable(error: Exception) -> Exception:
    """Return the error itself if it can be pickled, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
