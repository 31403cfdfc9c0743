"""A worker of the executor ``ray``: an actor on some node of a cluster, with a context of its own.

The actor's class is made in a function, so that Ray sends its code instead of its name: it can say what is installed
on its node even if that has no Tangora, or another version. What it does then is in `Desk`, on the node's own code.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.errors import TangoraError
from tangora.runs.events import Event
from tangora.runs.executors._worker import Finished, portable
from tangora.support.files import write_text

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.executors._ray_files import Parcel
    from tangora.runs.jobs import Job
    from tangora.runs.sources import Sources
    from tangora.support.machine import Machine

__all__ = ["PACKAGES", "Desk", "Message", "Terms", "actor_class", "reader_of_versions"]

PACKAGES = ("tangora", "torch")
_GRACE = 10.0  # seconds for a job to end properly

Message: TypeAlias = Event | Finished | logging.LogRecord


@dataclass(frozen=True)
class Terms:
    """What a worker needs to know to begin.

    Attributes:
        run: the run's folder, the same path on every node; with ``recipe``, the driver's.
        threads: of torch on the CPU.
        trusted: the run's process may run code from the base model's repository.
        gpus: number of GPUs that the worker has, also a fraction of one.
        recipe: the run's, as text, for a worker that has a copy of the run's folder; else None.
        sources: with ``recipe``, what the run was planned for.
    """

    run: str
    threads: int
    trusted: bool
    gpus: float
    recipe: str | None = None
    sources: Sources | None = None


def reader_of_versions() -> Callable[[Sequence[str]], dict[str, str]]:
    """Return a function of packages, whose code Ray sends as that of `actor_class`.

    It returns package -> installed version, without the name of a local build; empty if it is not installed.
    """

    def read(packages: Sequence[str]) -> dict[str, str]:
        from importlib import metadata  # deferred: the code is sent without its module

        found = {}
        for name in packages:
            try:
                found[name] = metadata.version(name).partition("+")[0]
            except metadata.PackageNotFoundError:
                found[name] = ""
        return found

    return read


def actor_class() -> type[Any]:
    """Return the class of actors."""
    read = reader_of_versions()

    class TangoraWorker:
        def hello(self, packages: Sequence[str], path: str, token: str, patience: float) -> Mapping[str, Any]:
            """Return what is here; only the standard library is used."""
            import os  # deferred: the code is sent without its module
            import platform  # deferred: likewise
            import time  # deferred: likewise

            sees, ends = not path, time.monotonic() + patience  # without one, it gets a copy
            while not sees:  # shared storage may show a new file late
                try:
                    with open(path, encoding="utf-8") as file:
                        sees = file.read() == token
                except OSError:
                    pass
                if sees or time.monotonic() > ends:
                    break
                time.sleep(0.2)
            return {"host": platform.node(), "pid": os.getpid(), "versions": read(packages), "sees": sees}

        def start(self, terms: Any) -> None:
            """Begin, with the code of this node."""
            from tangora.runs.executors._ray_worker import Desk  # deferred: the node's own

            self.desk = Desk(terms)

        def step(self, job: Any, patience: float, parcels: Sequence[Any] = ()) -> Any:
            """Take a job and files for it, or None, and return what there is to report."""
            return self.desk.step(job, patience, parcels)

        def stop(self) -> None:
            """End the current job as Ctrl-C does, and remove what is the worker's own."""
            self.desk.stop()

    return TangoraWorker


class Desk:
    """Does jobs in a thread of its own, and reports from another, so that a job can be stopped.

    Args:
        terms: see there.
    """

    def __init__(self, terms: Terms) -> None:
        os.environ["OMP_NUM_THREADS"] = str(terms.threads)  # before torch and BLAS are imported: they read it once
        self._terms = terms
        self._run, self._copy = Path(terms.run), terms.recipe is not None
        self._there: dict[str, str] = {}  # what the driver has of the copy: path -> version here
        if terms.recipe is not None:
            self._run = Path(tempfile.mkdtemp(prefix="tangora-run-"))
            write_text(self._run / "recipe.yaml", terms.recipe)
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="tangora-jobs")
        self._thread.start()

    def step(self, job: Job | None, patience: float, parcels: Sequence[Parcel] = ()) -> list[Message]:
        """Take a job, wait, and return what was reported, of progress only the latest.

        Args:
            job: to do; None to go on with the last one.
            patience: seconds to wait for the job's end.
            parcels: files that the job reads, for a copy of the run's folder.
        """
        if job is not None:
            if parcels:
                from tangora.runs.executors._ray_files import unpack  # deferred: imports ray

                self._there |= unpack(self._run, parcels)
            self._jobs.put(job)
        found: list[Message] = []
        ends = time.monotonic() + patience
        while not (found and isinstance(found[-1], Finished)):
            try:
                found.append(self._messages.get(timeout=max(0.0, ends - time.monotonic())))
            except queue.Empty:
                break
        return _thinned(found)

    def stop(self) -> None:
        """Raise KeyboardInterrupt in the job, wait until it has ended, and remove the copy of the run's folder."""
        ident = self._thread.ident
        if ident is not None and self._busy:  # else it waits for a job, which nothing interrupts
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))
            self._thread.join(_GRACE)
        if self._copy:
            shutil.rmtree(self._run, ignore_errors=True)

    def _work(self) -> None:
        """Do jobs until there is an interruption."""
        context: Context | None = None
        while True:
            try:
                job = self._jobs.get()
                self._busy = True
                context = context or self._opened()
                parcels = self._do(job, context)
            except KeyboardInterrupt:
                return
            except BaseException as error:  # a library's SystemExit, too, is the end of the job alone
                plain = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
                finished = Finished(portable(plain), traceback.format_exc())
            else:
                finished = Finished(parcels=parcels)
            self._busy = False
            self._messages.put(finished)

    def _opened(self) -> Context:
        """Import what jobs need, and return this process's context: base and data are loaded once."""
        import torch  # deferred: it reads the number of threads when it is imported

        from tangora.runs.context import Context  # deferred: imports torch

        torch.set_num_threads(self._terms.threads)  # in this thread: the setting is a thread's own
        logging.captureWarnings(True)
        log = logging.getLogger("tangora")
        log.setLevel(logging.INFO)
        log.addHandler(QueueHandler(self._messages))  # the driver writes run.log: shared storage has no safe appends
        context = Context.open(self._run, trust_remote_code=self._terms.trusted)
        context.given_machine = self._machine(context)
        if self._terms.sources is not None:
            context.sources = self._terms.sources
        return context

    def _machine(self, context: Context) -> Machine:
        """Return the recipe's machine, on the GPU that the worker was given; there is one to see, as number 0."""
        from tangora.support.machine import Machine  # deferred: imports torch

        settings = context.recipe.machine
        device = settings.device
        if self._terms.gpus and device.startswith(("auto", "cuda")):
            device = "cuda"
        elif not self._terms.gpus and device == "auto":
            device = "cpu"  # Ray may let it see GPUs that are not its own
        return Machine.resolve(device, settings.dtype, self._terms.threads)

    def _do(self, job: Job, context: Context) -> tuple[Parcel, ...]:
        """Do a job, and return what it has written if that has to be sent."""
        from tangora.runs.execution import perform  # deferred: with the context

        try:
            context.plan[job.key]
        except KeyError:
            what = "the worker derives other jobs from the run's folder: its code of Tangora is another"
            fix = "install the same Tangora on every node"
            raise TangoraError(what, got=job.label, where="executor ray", fix=fix) from None
        if not self._copy:
            perform(job, context, self._messages.put)
            return ()
        from tangora.runs.executors._ray_files import pack, versions  # deferred: imports ray

        perform(job, context, self._messages.put)
        # Not only what this try has written: an earlier one may have failed after it had written something.
        now = versions(self._run)
        parcels = pack(self._run, [name for name in now if now[name] != self._there.get(name)])
        self._there = now
        return tuple(parcels)


def _thinned(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without progress that the next message replaces."""
    kept: list[Message] = []
    for message in messages:
        if kept and _is_progress(message) and _is_progress(kept[-1]) and _part(message) == _part(kept[-1]):
            kept[-1] = message
        else:
            kept.append(message)
    return kept


def _is_progress(message: Message) -> bool:
    return isinstance(message, Event) and message.what == "progressed"


def _part(message: Message) -> tuple[str, int] | None:
    return (message.label, message.steps) if isinstance(message, Event) else None
