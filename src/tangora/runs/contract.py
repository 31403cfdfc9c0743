"""The contract of an executor, which decides where and in which order the jobs of a run are done.

An executor is one object, looked up by name: ours by file (`tangora.runs.executors`), another package's by an entry
point of the group ``tangora.executors``. `tangora.testing.check_executor` checks the promises below on a tiny run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tangora.runs.context import Context
    from tangora.runs.events import OnEvent
    from tangora.runs.jobs import Job

__all__ = ["Executor"]


@runtime_checkable
class Executor(Protocol):
    """A way to do jobs: one after the other in this process, in processes of this host, or on other machines.

    Attributes:
        name: the registered name: the value of ``executor.name`` in a recipe.
        settings: a frozen pydantic class (`tangora.config.settings.Frozen`) with the keys of the recipe's ``executor``
            other than ``name``, all of them with defaults.

    An executor promises:

    1. **Every job, once.** When `run` returns, each job is done: its files are in the run's folder.
    2. **Inputs first.** A job starts after those of its ``inputs`` that are among the given jobs; the others are done
       already. Jobs that do not depend on each other may be done in any order, or at once.
    3. **By `tangora.runs.execution.perform`**, called here or in another process, or by ``tangora job RUN KEY`` on
       another machine with access to the folder. Both take the job's lock, skip a job that is done, and write the
       record. Another process makes its own context, by ``Context.open(context.run)``: jobs can be pickled, contexts
       cannot.
    4. **Events.** For each job ``on_event`` receives ``started``, then any number of ``progressed``, then ``done`` or
       ``failed``, in the process and the thread that called `run`. The events of `perform` suffice.
    5. **Failure stops the run.** After a job has failed, no further job is started, and `run` raises the job's error:
       the error itself, or a `TangoraError` that quotes it. Jobs that are done stay done. The same holds if a worker
       dies; the error then names the job that it was doing. An executor may begin a job again before its failure
       counts; its events are those of one job then.
    6. **Interruption stops everything.** On `KeyboardInterrupt`, everything that the executor started ends.
    7. **Same files.** The place and order of jobs do not change their files, if the number of threads is the same:
       threads split sums of floating-point numbers.

    ``job.resources`` contains the amount of work, for comparison with other jobs of the same kind, and whether the job
    computes with the base model on the device of the run's machine. An executor may use it to place jobs, or ignore it.
    """

    name: str
    settings: type[BaseModel]

    def run(self, jobs: Sequence[Job], context: Context, settings: BaseModel, on_event: OnEvent) -> None:
        """Do the jobs.

        Args:
            jobs: ordered so that every job comes after its inputs.
            context: of the run, in this process.
            settings: an object of the class `settings`.
            on_event: see above.

        Raises:
            Exception: the error of the first job that failed.
        """
        ...
