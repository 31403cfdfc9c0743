"""The connection to a Ray cluster: one that is there, or one of this host that lives as long as the run."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from tangora.errors import TangoraError

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.executors.ray import RaySettings

__all__ = ["connected"]

log = logging.getLogger("tangora")
_STORE = 100 * 2**20  # bytes of an own cluster's object store: only jobs and events pass through it
_CONNECT = 10.0  # seconds for a connection to the cluster's head


@contextmanager
def connected(settings: RaySettings, context: Context) -> Iterator[None]:
    """Be connected for the length of the block; end what was started for it, and nothing else.

    A connection that this process has already, by ``ray.init`` in a script, is used and kept.

    Raises:
        TangoraError: there is no such cluster, or none can be started.
    """
    if ray.is_initialized():
        _say()
        yield
        return
    # A driver that reports its use to others, or that starts a dashboard, is for people to choose.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "configure_logging": False, "log_to_driver": False}
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _messages_logged():
        try:
            _look(settings.address)
            if settings.address == "local":
                ray.init(address="local", include_dashboard=False, **_own(settings, context), **quiet)
            else:
                ray.init(address=settings.address, **quiet)
        except Exception as error:  # Ray has no class for what can go wrong here
            raise _unreachable(settings.address, error) from error
        try:
            _say()
            yield
        finally:
            ray.shutdown()


def _look(address: str) -> None:
    """Raise at once if nobody listens at an address; Ray itself tries for minutes.

    Raises:
        OSError: there is no connection.
    """
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = named.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT).close()


@contextmanager
def _messages_logged() -> Iterator[None]:
    """Log what Ray would print on stdout, such as the death of a node with the last lines of its log.

    There is no option for it: ``log_to_driver`` is about the output of workers. On stdout it would be in the midst of
    a result, and of a bar. If a version of Ray has no such function, it prints.
    """
    from ray._private import worker  # deferred: private, and only needed here

    before = getattr(worker, "print_to_stdstream", None)

    def logged(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
        log.info("ray: %s", "\n".join(map(str, data.get("lines", ()))))

    if before is not None:
        worker.print_to_stdstream = logged
    try:
        yield
    finally:
        if before is not None:
            worker.print_to_stdstream = before


def _own(settings: RaySettings, context: Context) -> dict[str, Any]:
    """Return the options of an own cluster: as many processors as the workers that were asked for take."""
    options: dict[str, Any] = {"object_store_memory": _STORE, "_system_config": {"prestart_worker_first_driver": False}}
    if settings.workers is not None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        each = settings.cpus or settings.threads or context.machine.threads or 1
        options["num_cpus"] = max(cores, math.ceil(settings.workers * each))
    return options


def _say() -> None:
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    log.info("ray: %d nodes, %g CPU, %g GPU", nodes, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _unreachable(address: str, error: Exception) -> TangoraError:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    if address == "local":
        fix = "the logs of Ray say more: session_latest/logs below its temporary folder (/tmp/ray)"
        return TangoraError(f"Ray cannot be started on this host ({line})", where="executor ray", fix=fix)
    fix = "start the cluster (ray start --head), check the address and RAY_ADDRESS, or use address local"
    return TangoraError(f"cannot connect to a Ray cluster ({line})", got=address, where="executor.address", fix=fix)
