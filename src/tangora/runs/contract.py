"""What an executor is: where, and in which order, the jobs of a run are done.

An executor is one object, found by its name: ours by file (`tangora.runs.executors`), another package's by an entry
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
    """A way to do jobs: one after the other here, in processes of this host, on other machines.

    Attributes:
        name: as it is registered: what a recipe says in ``executor.name``.
        settings: a frozen pydantic class (`tangora.config.settings.Frozen`) with the keys that the recipe's
            ``executor`` takes besides ``name``, all of them with defaults.

    An executor promises:

    1. **Every job, once.** When `run` returns, each job is done: its files are in the run's folder.
    2. **Inputs first.** A job starts after the jobs that it names in ``inputs``, as far as they are among those given;
       the others are done already. Jobs that do not depend on each other may be done in any order, or at once.
    3. **By `tangora.runs.execution.perform`**, called here or in another process, or by ``tangora job RUN KEY`` on
       another machine that sees the folder. These take the job's lock, skip what is done, and write the record. Another
       process makes its own context, by ``Context.open(context.run)``: jobs can be pickled, contexts cannot.
    4. **Events.** For each job ``on_event`` receives ``started``, then any number of ``progressed``, then ``done`` or
       ``failed``, in the process and the thread that called `run`. What `perform` reports is enough.
    5. **Failure stops the run.** If a job fails, no other job is started that would not have been running by then, and
       `run` raises the job's error: itself, or a `TangoraError` that quotes it. What was done stays done. The same
       holds if a worker dies, and then the error names the job that it died with.
    6. **Interruption stops everything.** On `KeyboardInterrupt` nothing that the executor started goes on.
    7. **Same files.** Where and in which order jobs are done changes none of their files, if they compute with as many
       threads: sums of floating-point numbers may be split among threads.

    ``job.resources`` says how much work a job is, as compared with others of its kind, and whether it computes with the
    base model on the device of the run's machine. An executor may use it to place jobs, or ignore it.
    """

    name: str
    settings: type[BaseModel]

    def run(self, jobs: Sequence[Job], context: Context, settings: BaseModel, on_event: OnEvent) -> None:
        """Do the jobs.

        Args:
            jobs: in an order in which every job is behind its inputs.
            context: of the run, in this process.
            settings: an object of the class `settings`.
            on_event: see above.

        Raises:
            Exception: what the first job that failed raised.
        """
        ...
