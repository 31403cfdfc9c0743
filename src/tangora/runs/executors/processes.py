"""Do several jobs at once, in worker processes of this host."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, cast

from pydantic import Field

from tangora.config.settings import Frozen
from tangora.errors import TangoraError
from tangora.runs.events import Event
from tangora.runs.executors._worker import Finished, Ready, WorkerTraceback, work

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tangora.runs.context import Context
    from tangora.runs.contract import Executor
    from tangora.runs.events import OnEvent
    from tangora.runs.jobs import Job

__all__ = ["EXECUTOR", "Processes", "ProcessesSettings"]

_GRACE = 15.0  # seconds for a worker to end its current job properly


class ProcessesSettings(Frozen):
    """The number of processes, and of their threads."""

    workers: int = Field(default=2, ge=1, description="processes; each has a base model in memory")
    threads: int | None = Field(
        default=None, ge=1, description="of each worker; default: the machine's threads, divided by the workers"
    )


class Processes:
    """Does jobs in worker processes, each with its own base model.

    Choose it if there is memory for several base models and one job does not use the whole machine, as with small
    models on many cores. On one GPU the workers share its memory.
    """

    name = "processes"
    settings: type[BaseModel] = ProcessesSettings

    def run(self, jobs: Sequence[Job], context: Context, settings: BaseModel, on_event: OnEvent) -> None:
        """Do the jobs; see `tangora.runs.contract.Executor`.

        If a worker dies, its job is lost; the others end theirs, and the run stops.
        """
        chosen = cast(ProcessesSettings, settings)
        context.release()  # the workers have their own copies
        count = min(chosen.workers, len(jobs))
        with _workers(context, count, chosen.threads or _share(context, chosen.workers)) as workers:
            _Schedule(list(jobs), workers, on_event).run()


def _share(context: Context, workers: int) -> int:
    """Return the threads of one worker if the workers share this process's threads."""
    import torch  # deferred: validating a recipe needs only the settings

    return max(1, (context.machine.threads or torch.get_num_threads()) // workers)


@dataclass
class _Worker:
    """A process, this end of its pipe, and its current job."""

    process: BaseProcess
    connection: Connection
    ready: bool = False
    job: Job | None = None

    def send(self, job: Job | None) -> None:
        """Send a job, or None for no more jobs. If the worker has died, its sentinel reports it."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(job)

    def death(self) -> TangoraError:
        """Return the error for a process that has ended by itself."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not self.ready:
            what = f"a worker process ended while it started ({how})"
            fix = "in a script, call tangora.run below `if __name__ == '__main__':`; stderr says more"
            return TangoraError(what, where="executor processes", fix=fix)
        what = f"a worker process died ({how})" + (f" while it did the job {self.job.label}" if self.job else "")
        fix = "if memory ran out, give fewer workers; then start the same command again to resume"
        return TangoraError(what, where="executor processes", fix=fix)


@contextmanager
def _workers(context: Context, count: int, threads: int) -> Iterator[list[_Worker]]:
    """Start workers, and end them: at once if the block raises."""
    spawn, workers = multiprocessing.get_context("spawn"), list[_Worker]()
    trusted = context.recipe.base.trust_remote_code is True
    try:
        for _ in range(count):
            near, far = spawn.Pipe()
            process = spawn.Process(target=work, args=(str(context.run), threads, trusted, far))
            process.start()
            far.close()  # so that the pipe ends with the process
            workers.append(_Worker(process, near))
        yield workers
        for worker in workers:
            worker.send(None)
    except BaseException:
        for worker in workers:
            worker.process.terminate()
            worker.connection.close()  # so that it does not block on a full pipe
        raise
    finally:
        for worker in workers:
            worker.process.join(_GRACE)
            if worker.process.is_alive():
                worker.process.kill()
            worker.connection.close()


@dataclass
class _Schedule:
    """Waiting jobs, the workers with their current jobs, and the first error."""

    waiting: list[Job]
    workers: list[_Worker]
    on_event: OnEvent
    _left: set[str] = field(init=False)
    _error: BaseException | None = None

    def __post_init__(self) -> None:
        self._left = {job.key for job in self.waiting}

    def run(self) -> None:
        """Go on until every job is done, or until no job is running after an error; then raise the error."""
        while self._left:
            self._hand_out()
            if self._error is not None and not any(worker.job for worker in self.workers):
                raise self._error
            sources: list[Connection | int] = [worker.connection for worker in self.workers]
            for source in wait([*sources, *(worker.process.sentinel for worker in self.workers)]):
                self._listen(source)

    def _hand_out(self) -> None:
        """Give every idle worker the first job whose inputs are done."""
        for worker in self.workers:
            if self._error is not None or not worker.ready or worker.job is not None:
                continue
            job = next((job for job in self.waiting if not self._left & set(job.inputs)), None)
            if job is None:
                return
            self.waiting.remove(job)
            worker.job = job
            worker.send(job)

    def _listen(self, source: object) -> None:
        """Receive a worker's messages, or handle its death."""
        worker = next((w for w in self.workers if source in (w.connection, w.process.sentinel)), None)
        if worker is None:  # it was just removed
            return
        try:
            while worker.connection.poll():
                self._receive(worker, worker.connection.recv())
        except (EOFError, ConnectionResetError):
            self._remove(worker)
            return
        if not worker.process.is_alive() and not worker.connection.poll():
            self._remove(worker)

    def _receive(self, worker: _Worker, message: object) -> None:
        if isinstance(message, Event):
            self.on_event(message)
        elif isinstance(message, Ready):
            worker.ready = True
        elif isinstance(message, Finished) and worker.job is not None:
            job, worker.job = worker.job, None
            if message.error is None:
                self._left.discard(job.key)
                return
            message.error.__cause__ = WorkerTraceback(f"\n{message.trace}")
            self._fail(message.error)

    def _remove(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        if worker.job is None and worker.ready and self.workers:
            return  # the other workers do its share
        error = worker.death()
        if worker.job is not None:
            self.on_event(Event(worker.job.key, "failed", label=worker.job.label, error=str(error)))
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error


EXECUTOR: Executor = Processes()
