"""Hand jobs to workers on a Ray cluster, and do again those whose worker dies."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tangora.errors import TangoraError
from tangora.runs.events import Event, OnEvent
from tangora.runs.executors._ray_crew import Crew, Member, reason
from tangora.runs.executors._ray_files import Parcel, Shelf
from tangora.runs.executors._ray_jobs import JobQueue
from tangora.runs.executors._ray_needs import Need
from tangora.runs.executors._ray_worker import Message
from tangora.runs.executors._worker import Finished, WorkerTraceback
from tangora.runs.jobs import Job

__all__ = ["Schedule"]

log = logging.getLogger("tangora")
_TURN = 1.0  # seconds after which a worker reports, and after which the cluster is looked at, if nothing happens
_CALLS = 200.0  # reports per second that this process takes from all workers
_SLOW = 30.0  # seconds without any worker until a line says why


@dataclass
class Schedule:
    """The jobs, the workers that do them, and the first error.

    Args:
        jobs: to do.
        crew: the workers.
        on_event: receives the events of each job: ``started`` once, ``done`` or ``failed`` once.
        tries: how often a job is begun before its failure counts.
        note: receives a line for the user.
        shelf: sends files and takes them, if workers have copies of the run's folder.
    """

    jobs: JobQueue[Need]
    crew: Crew
    on_event: OnEvent
    tries: int
    note: Callable[[str], None]
    shelf: Shelf | None = None
    _tried: Counter[str] = field(default_factory=Counter)
    _avoid: dict[str, set[str]] = field(default_factory=dict)
    _started: set[str] = field(default_factory=set)
    _last: dict[str, Event] = field(default_factory=dict)
    _error: BaseException | None = None
    _alone: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Go on until every job is done, or until no job is running after an error; then raise the error."""
        while self.jobs.left:
            if self._error is None:
                try:
                    self.crew.staff(self.jobs.ready())
                except TangoraError as error:
                    self._error = error
                self._hand_out()
            if self._error is not None and not any(member.job for member in self.crew.members):
                raise self._error
            self._listen()

    def _hand_out(self) -> None:
        """Give every idle worker the first job that it may do."""
        for member in self.crew.ready() if self._error is None else ():
            if member.job is None and (job := self._next(member)) is not None:
                member.job = job
                self._ask(member, job, *([self.shelf.pack(member, job)] if self.shelf else []))

    def _next(self, member: Member) -> Job | None:
        """Return a job for a worker; one that failed there goes to another, if there is one."""
        if not self._avoid:
            return self.jobs.take(member.need)
        every = {str(one) for one in self.crew.ready(member.need)}

        def wanted(job: Job) -> bool:
            failed = self._avoid.get(job.key, set())
            return str(member) not in failed or every <= failed

        return self.jobs.take(member.need, wanted)

    def _ask(self, member: Member, job: Job | None, *parcels: Sequence[Parcel]) -> None:
        member.ref = member.actor.step.remote(job, max(_TURN, len(self.crew.members) / _CALLS), *parcels)

    def _listen(self) -> None:
        """Take the answers that are there, after the first one has come or a moment has passed."""
        waiting = {member.ref: member for member in self.crew.members if member.ref is not None}
        if not waiting:
            time.sleep(_TURN / 4)
        elif ray.wait(list(waiting), num_returns=1, timeout=_TURN)[0]:
            for ref in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
                self._receive(waiting[ref], ref)
        if self.shelf is not None:
            self.shelf.touch()
        now = time.monotonic()
        if self.crew.ready():
            self._alone = now
        elif now - self._alone >= _SLOW:
            self._alone = float("inf")  # once
            self.note("waiting for workers: the cluster has no room yet")

    def _receive(self, member: Member, ref: Any) -> None:
        try:
            answer = ray.get(ref)
        except RayTaskError as error:  # not the job's own: it could not be sent, or the worker could not begin
            self._broken(member, error)
        except RayError as error:
            self._lost(member, error)
        else:
            self._answered(member, answer)

    def _answered(self, member: Member, answer: Any) -> None:
        if member.state != "ready":
            try:
                self.crew.advance(member, answer)
            except TangoraError as error:
                self.crew.dismiss(member)
                self._fail(error)
            return
        member.ref = None
        for message in answer:
            self._take(member, message)
        if member.job is not None:
            self._ask(member, None)

    def _take(self, member: Member, message: Message) -> None:
        job = member.job
        if isinstance(message, Finished) and job is not None:
            error, trace = message.error, message.trace
            if error is None and self.shelf is not None:
                try:
                    self.shelf.take(member, job, message.parcels)
                except RayError as gone:  # with what it has written
                    self._lost(member, gone)
                    return
                except TangoraError as cause:
                    error = cause
            member.job = None
            if error is None:
                self._ended(job)
                self._tell(job, "done")
                self.jobs.done(job)
            else:
                self._failed(member, job, error, trace)
        elif isinstance(message, logging.LogRecord):
            message.msg = f"{member}: {message.msg}"
            log.handle(message)
        elif isinstance(message, Event):
            self._pass_on(member, message)

    def _pass_on(self, member: Member, event: Event) -> None:
        """Pass an event on; the last one of a job waits until it is certain that it is the last."""
        if event.what in ("done", "failed"):
            self._last[event.key] = event
        elif event.what == "started" and event.key in self._started:
            detail = f"again, on {member.host} (try {self._tried[event.key] + 1} of {self.tries})"
            self.on_event(replace(event, what="progressed", detail=detail))
        else:
            self._started.add(event.key)
            self.on_event(event)

    def _tell(self, job: Job, what: str, error: str = "") -> None:
        """Report the end of a job, which may have died before it could."""
        last = self._last.pop(job.key, None)
        if last is None or last.what != what:
            last = Event(job.key, "failed" if what == "failed" else "done", label=job.label, error=error)
        if job.key not in self._started:
            self._started.add(job.key)
            self.on_event(Event(job.key, "started", label=job.label))
        self.on_event(last)

    def _ended(self, job: Job) -> None:
        """Remove what says that a worker does a job."""
        if self.shelf is not None:
            self.shelf.unmark(job)

    def _failed(self, member: Member, job: Job, error: BaseException, trace: str) -> None:
        """Let a job be done again, unless its error is certain to come again or it was tried often enough."""
        self._ended(job)
        self._tried[job.key] += 1
        count, certain = self._tried[job.key], isinstance(error, TangoraError)
        log.error(
            "%s: failed (try %d of %d) by %s: %s\n%s", job.label, count, self.tries, member, error, trace.rstrip()
        )
        if not certain and count < self.tries and self._error is None:
            self._last.pop(job.key, None)
            self._avoid.setdefault(job.key, set()).add(str(member))
            self.jobs.give_back(job)
            return
        self._tell(job, "failed", f"{type(error).__name__}: {error}")
        if not certain:
            what = f"the job {job.label} failed {count} times, the last time by {member}: {_line(error)}"
            fix = "the log has the tracebacks; the same command goes on where this one stopped"
            error = TangoraError(what, where="executor ray", fix=fix)
        if trace:
            error.__cause__ = WorkerTraceback(f"\n{trace}")
        self._fail(error)

    def _lost(self, member: Member, error: RayError) -> None:
        """Do the job of a worker again that has died, or whose node has."""
        job, member.job = member.job, None
        if self.shelf is not None:
            self.shelf.forget(member)
        try:
            self.crew.lost(member, error)
        except TangoraError as many:
            self._fail(many)
        if job is not None:
            self._failed(member, job, RuntimeError(f"the worker died: {reason(error)}"), "")

    def _broken(self, member: Member, error: RayTaskError) -> None:
        """Give up a worker whose own code raised."""
        if member.job is None:
            fix = "install the same Tangora on every node; the log has the traceback"
            what = f"a worker cannot begin, {member}: {_line(error)}"
            failed: BaseException = TangoraError(what, where="executor ray", fix=fix)
            failed.__cause__ = error
            self.crew.dismiss(member)
            self._fail(failed)
            return
        job, member.job = member.job, None
        self.crew.dismiss(member)
        self._failed(member, job, RuntimeError(_line(error)), str(error))

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error


def _line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    text = " ".join(str(cause).split())[:300]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
