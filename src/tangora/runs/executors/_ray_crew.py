"""The workers of the executor ``ray``: actors that are hired, checked, given jobs, and let go."""

from __future__ import annotations

import logging
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil
import ray
from ray.exceptions import RayError

from tangora.errors import TangoraError
from tangora.runs.executors._ray_needs import Need
from tangora.runs.jobs import Job

__all__ = ["Checks", "Crew", "Member", "cluster_nodes", "reason"]

log = logging.getLogger("tangora")
_STARTS = 3  # workers that end before they are ready, one after the other, until the run stops
_GRACE = 15.0  # seconds for all workers to end their jobs properly
_LOOK = 2.0  # seconds between two looks at the nodes of the cluster


@dataclass(frozen=True)
class Checks:
    """How workers are made and what is asked of them before they begin.

    Attributes:
        hire: makes an actor that has what it needs; see `tangora.runs.executors._ray_worker.actor_class`.
        hello: arguments of the actor's ``hello``.
        accept: raises if what ``hello`` returns is not as it has to be.
        terms: what the actor's ``start`` is given, by its need.
        copies: whether workers have something of their own to remove at the end.
    """

    hire: Callable[[Need], Any]
    hello: tuple[Any, ...]
    accept: Callable[[Mapping[str, Any]], None]
    terms: Callable[[Need], Any]
    copies: bool = False


@dataclass(eq=False)
class Member:
    """One worker.

    Attributes:
        actor: the handle.
        need: what it has.
        ref: of the call that it answers now; None while it is idle.
        state: what this call is: ``hello`` and ``start`` come first; then it is ready.
        job: the current one.
        host, pid: where it is, once it has said hello.
    """

    actor: Any
    need: Need
    ref: Any = None
    state: Literal["hello", "start", "ready"] = "hello"
    job: Job | None = None
    host: str = "?"
    pid: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass
class Crew:
    """All workers of a run.

    Args:
        checks: how they are made.
        most: number of workers; None for as many as the nodes of the cluster have room for.
        wait: seconds to wait for a node that has what a worker needs.
    """

    checks: Checks
    most: int | None
    wait: float
    members: list[Member] = field(default_factory=list)
    _failed: int = 0
    _without: dict[Need, float] = field(default_factory=dict)
    _nodes: list[Mapping[str, float]] = field(default_factory=list)
    _looked: float = float("-inf")

    def ready(self, need: Need | None = None) -> list[Member]:
        """Return the workers that have begun, all of them or those of one need."""
        return [m for m in self.members if m.state == "ready" and (need is None or m.need == need)]

    def staff(self, waiting: Mapping[Need, int]) -> None:
        """Hire for jobs that can start, as far as the cluster has room, and let go those in the way of others.

        Raises:
            TangoraError: no node has what a worker needs, and none has come for a while.
        """
        have = Counter(member.need for member in self.members)
        free = Counter(member.need for member in self.members if member.job is None)
        for need, jobs in waiting.items():
            room = self._room(need) - have[need]
            if self.most is not None:
                room = self.most - len(self.members)
            for _ in range(min(room, jobs - free[need])):
                self._hire(need)
        starved = [need for need in waiting if not self.ready(need)]
        if starved:
            for member in [m for m in self.ready() if m.job is None and not waiting.get(m.need)]:
                self.dismiss(member)  # its GPU or memory is what others wait for

    def _room(self, need: Need) -> int:
        """Return the number of workers of a need for which the nodes of the cluster have room now.

        Raises:
            TangoraError: as `staff`.
        """
        now = time.monotonic()
        if now - self._looked > _LOOK:
            self._nodes, self._looked = cluster_nodes(), now
        room = sum(need.fits(node) for node in self._nodes)
        if room:
            self._without.pop(need, None)
        elif now - self._without.setdefault(need, now) >= self.wait:
            raise _no_node(need, self._nodes)
        return room

    def _hire(self, need: Need) -> None:
        actor = self.checks.hire(need)
        self.members.append(Member(actor, need, actor.hello.remote(*self.checks.hello)))

    def advance(self, member: Member, answer: Any) -> None:
        """Take the answer of a call that comes before the first job, and make the next one.

        Raises:
            TangoraError: the worker cannot do jobs of this run.
        """
        member.ref = None
        if member.state == "hello":
            member.host, member.pid = str(answer["host"]), int(answer["pid"])
            self.checks.accept(answer)
            member.state, member.ref = "start", member.actor.start.remote(self.checks.terms(member.need))
        else:
            member.state, self._failed = "ready", 0
            log.info("ray: %s is ready", member)

    def lost(self, member: Member, error: RayError) -> None:
        """Forget a worker that has ended by itself.

        Raises:
            TangoraError: several have ended before they were ready.
        """
        early = member.state != "ready"
        self.dismiss(member)
        self._looked = float("-inf")  # its node may be gone
        log.warning("ray: %s has ended: %s", member, reason(error))
        self._failed += early
        if self._failed >= _STARTS:
            what = f"{self._failed} workers have ended before they were ready, the last with: {reason(error)}"
            fix = "the logs of Ray say more: session_latest/logs below its temporary folder (/tmp/ray) on that node"
            raise TangoraError(what, where="executor ray", fix=fix)

    def dismiss(self, member: Member) -> None:
        """End a worker that does nothing, or that is lost."""
        self.members.remove(member)
        if self.checks.copies and member.state == "ready" and member.job is None:
            ray.wait([member.actor.stop.remote()], timeout=_GRACE)
        ray.kill(member.actor)

    def end(self, *, at_once: bool) -> None:
        """End all workers; ``at_once``: also those that do a job, as Ctrl-C does, within seconds."""
        try:
            stopped = [
                m.actor.stop.remote() for m in self.members if m.job is not None or (self.checks.copies and m.pid)
            ]
            if stopped and (at_once or self.checks.copies):
                ray.wait(stopped, num_returns=len(stopped), timeout=_GRACE)
        finally:
            for member in self.members:
                ray.kill(member.actor)
            _wait_for_end([member.pid for member in self.members if member.host == platform.node()])
            self.members.clear()


def _wait_for_end(pids: list[int]) -> None:
    """Wait until the workers on this host are gone, which Ray has only sent a signal."""
    ends = time.monotonic() + _GRACE
    while any(pid and psutil.pid_exists(pid) for pid in pids) and time.monotonic() < ends:
        time.sleep(0.02)


def cluster_nodes() -> list[Mapping[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _no_node(need: Need, nodes: list[Mapping[str, float]]) -> TangoraError:
    names = ("GPU", "CPU", "memory")
    have = [", ".join(f"{name} {node[name]:g}" for name in names if node.get(name)) or "nothing" for node in nodes]
    listed = "; ".join(f"{count} × {what}" for what, count in Counter(have).most_common(4)) or "none"
    fix = "ask for less in executor.gpus, cpus and memory (in GB), or wait longer for nodes with executor.wait"
    return TangoraError(f"no node of the cluster has {need}; its nodes: {listed}", where="executor ray", fix=fix)


def reason(error: BaseException) -> str:
    """Return the part of Ray's message that says what happened, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marks = ("has died", "died unexpectedly", "was killed", "Error", "reason", "exit")
    skipped = ("class_name:", "actor_id:", "namespace:", "ip:", "name:", "pid:")
    kept = [line for line in lines if not line.startswith(skipped)]
    chosen = [line for line in kept[1:] if any(mark in line for mark in marks)] or kept[:1] or [type(error).__name__]
    return " ".join(chosen[-1].split())[:300]
