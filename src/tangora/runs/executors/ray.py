"""Do jobs on the nodes of a Ray cluster, or on this host with Ray's help."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field

from tangora.config.places import absolute
from tangora.config.settings import Frozen
from tangora.errors import TangoraError
from tangora.support.extras import require
from tangora.support.files import write_text
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tangora.runs.context import Context
    from tangora.runs.contract import Executor
    from tangora.runs.events import OnEvent
    from tangora.runs.executors._ray_needs import Need
    from tangora.runs.jobs import Job

__all__ = ["EXECUTOR", "KINDS", "Ray", "RaySettings", "Share"]

KINDS = ("expert", "given", "statistics", "columns", "zero-shot", "expert-scores", "fusion-scores", "tables", "fused")
"""Kinds of jobs that an executor is given; the driver makes the report."""
_PATIENCE = 5.0  # seconds for a new file to appear on another host
_ADDRESS = re.compile(r"auto|local|(ray://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):\d{1,5}")


def _is_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("it is local, auto, HOST:PORT or ray://HOST:PORT")
    return text


def _is_kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"no such kind of job. {did_you_mean(name, list(KINDS))}")
    return name


class Share(Frozen):
    """The part of a node that a worker takes."""

    gpus: float | None = Field(
        default=None,
        ge=0,
        description="of a worker, also a fraction; default: 1 if the run is on GPUs",
    )
    cpus: float | None = Field(default=None, ge=0, description="of a worker, as Ray counts them; default: its threads")
    memory: float | None = Field(
        default=None, ge=0, description="of a worker, in GB; default: an estimate of its largest job; 0: not counted"
    )
    threads: int | None = Field(
        default=None, ge=1, description="of torch in a worker; default: its cpus if given, else the run's threads"
    )


class RaySettings(Share):
    """The cluster, and the workers on it."""

    address: Annotated[str, AfterValidator(_is_address)] = Field(
        default="local",
        description="local: a cluster of this host, for this run; auto: the one that RAY_ADDRESS names or that runs on "
        "this host; HOST:PORT; or ray://HOST:PORT for a driver outside the cluster",
    )
    workers: int | None = Field(
        default=None, ge=1, description="processes, each with a base model; default: as many as the nodes have room for"
    )
    jobs: dict[Annotated[str, AfterValidator(_is_kind)], Share] = Field(
        default_factory=dict, description="kind of job -> what its workers take, if it differs"
    )
    storage: Literal["shared", "copied"] = Field(
        default="shared",
        description="shared: every node sees the run's folder at the same path; copied: workers have copies, and files "
        "travel through Ray's object store",
    )
    tries: int = Field(default=3, ge=1, description="times that a job is begun until its failure stops the run")
    wait: float = Field(default=60.0, ge=0, description="seconds to wait for a node that has what a worker takes")


class Ray:
    """Does jobs in workers on the nodes of a cluster; each has its own base model.

    Choose it for several GPUs, on one host or on many. If every node mounts the storage of the run's folder at the same
    path, inputs and results are files there, and only jobs and events pass through Ray. Without such storage
    (``storage: copied``) each worker has a copy of what its jobs read, and files pass through Ray, too.

    A worker that dies costs the job at hand, which is begun again elsewhere. An error that is not a `TangoraError` may
    be the node's, so the job is begun again too, up to ``tries`` times in all; a `TangoraError` would come again, and
    stops the run at once. In both cases jobs that are running are ended before the error is raised.
    """

    name = "ray"
    extra = "ray"
    settings: type[BaseModel] = RaySettings

    def run(self, jobs: Sequence[Job], context: Context, settings: BaseModel, on_event: OnEvent) -> None:
        """Do the jobs; see `tangora.runs.contract.Executor`.

        Raises:
            MissingExtraError: Ray is not installed.
            TangoraError: there is no such cluster, a worker is refused, or a job failed.
        """
        require("ray", purpose="the executor ray")
        from tangora.runs.executors._ray_cluster import connected  # deferred: imports ray
        from tangora.runs.executors._ray_crew import Crew, cluster_nodes
        from tangora.runs.executors._ray_files import Shelf
        from tangora.runs.executors._ray_jobs import JobQueue
        from tangora.runs.executors._ray_needs import needs
        from tangora.runs.executors._ray_schedule import Schedule

        chosen = cast(RaySettings, settings)
        with connected(chosen, context), _token(context.run) as token:
            need_of = needs(context, chosen, cluster_nodes(), jobs)
            context.release()  # the workers have their own copies
            copies = chosen.storage == "copied"
            crew = Crew(_checks(context, token, copies), chosen.workers, chosen.wait)
            shelf, note = Shelf(context) if copies else None, context.progress.note
            at_once = True
            try:
                Schedule(JobQueue(jobs, need_of), crew, on_event, chosen.tries, note, shelf).run()
                at_once = False
            finally:
                crew.end(at_once=at_once)


@contextmanager
def _token(run: Path) -> Iterator[tuple[str, str]]:
    """Write a file by which workers find out whether their folder is this one; return its path and content."""
    path, text = run.absolute() / "cache" / "ray-token", secrets.token_hex(16)
    write_text(path, text)
    try:
        yield str(path), text
    finally:
        path.unlink(missing_ok=True)


def _checks(context: Context, token: tuple[str, str], copies: bool) -> Any:
    """Return how workers are made: the actor's class is sent with its code."""
    import ray  # deferred: an extra

    from tangora.runs.executors._ray_crew import Checks  # deferred: imports ray
    from tangora.runs.executors._ray_worker import PACKAGES, Terms, actor_class, reader_of_versions

    actor = ray.remote(actor_class())
    own = reader_of_versions()(PACKAGES)
    trusted = context.recipe.base.trust_remote_code is True

    def hire(need: Need) -> Any:
        return actor.options(max_restarts=0, scheduling_strategy="SPREAD", **need.options).remote()

    recipe, sources = (absolute(context.recipe).to_yaml(), context.sources) if copies else (None, None)

    def terms(need: Need) -> Terms:
        return Terms(str(context.run.absolute()), need.threads, trusted, need.gpus, recipe, sources)

    where = ("", "") if copies else token
    return Checks(hire, (PACKAGES, *where, _PATIENCE), partial(_accept, own, context.run), terms, copies)


def _accept(own: Mapping[str, str], run: Path, found: Mapping[str, Any]) -> None:
    """Refuse a worker that would compute something else, or somewhere else.

    Raises:
        TangoraError: names both versions, or the folder.
    """
    host = found["host"]
    for package, version in own.items():
        other = found["versions"][package]
        if other != version:
            what = f"the worker on {host} has {_version(package, other)}, and the driver {_version(package, version)}"
            fix = f"install {package} {version} on every node: other code may give other numbers"
            raise TangoraError(what, where="executor ray", fix=fix)
    if not found["sees"]:
        what = f"the worker on {host} does not see the run's folder"
        fix = "put it on storage that every node mounts at the same path, with --out, or set executor.storage: copied"
        raise TangoraError(what, where=run.absolute(), fix=fix)


def _version(package: str, version: str) -> str:
    return f"{package} {version}" if version else f"no {package}"


EXECUTOR: Executor = Ray()
