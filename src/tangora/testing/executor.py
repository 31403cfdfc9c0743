"""`check_executor`: the promises of `tangora.runs.contract.Executor`, on a few jobs of a tiny run.

The jobs are real (two experts and the scores of each), since an executor may run them in processes that have only the
run's folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel

from tangora.config.recipe import Recipe
from tangora.errors import TangoraError
from tangora.runs.context import Context
from tangora.runs.contract import Executor
from tangora.runs.events import Event
from tangora.runs.execution import perform
from tangora.runs.jobs import Job
from tangora.support.files import write_text
from tangora.support.seams import EXECUTORS
from tangora.testing._tiny_run import tiny_recipe

__all__ = ["check_executor"]

_WALL_TIMES = {"training.json"}


def check_executor(executor: Executor | str, **settings: Any) -> None:
    """Check an executor against the promises of `tangora.runs.contract.Executor`.

    Args:
        executor: the object, or its name.
        settings: keys of the executor's settings class; those left out have their defaults. Keep the number of threads
            at one, so that the files can be compared bit for bit with those of this process.

    Raises:
        AssertionError: says which promise is broken.
    """
    member: Executor = EXECUTORS.get(executor) if isinstance(executor, str) else executor
    _check_shape(member)
    chosen, threads = member.settings.model_validate(settings), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="tangora-check-") as scratch:
            folder = Path(scratch)
            recipe = tiny_recipe(folder)
            expected = _reference(_begin(recipe, folder / "reference"))
            _check_failure_and_resuming(member, chosen, _begin(recipe, folder / "run"), expected)
            _check_interruption(member, chosen, _begin(recipe, folder / "interrupted"))
    finally:
        torch.set_num_threads(threads)


def _check_shape(member: Executor) -> None:
    assert isinstance(member, Executor), f"{member!r} lacks name, settings or run: see tangora.runs.contract.Executor"
    assert issubclass(member.settings, BaseModel), f"{member.name}: settings must be a pydantic class"
    member.settings()  # every setting has a default


def _begin(recipe: Recipe, run: Path) -> Context:
    """Prepare a run's folder as the driver does before it calls an executor."""
    context = Context(run, recipe)
    sources = context.load()
    write_text(run / "recipe.yaml", recipe.to_yaml())
    sources.write(run, recipe)
    return context


def _jobs(context: Context) -> list[Job]:
    return [job for job in context.plan if job.kind in ("expert", "expert-scores")]


def _reference(context: Context) -> Mapping[str, bytes]:
    for job in _jobs(context):
        perform(job, context, lambda event: None)
    return _contents(context.run)


def _contents(run: Path) -> Mapping[str, bytes]:
    """Return the files of adapters and outcomes, except those that contain wall times."""
    files = [*(run / "adapters").rglob("*"), *(run / "cache" / "outcomes").rglob("*")]
    kept = (path for path in files if path.is_file() and path.name not in _WALL_TIMES)
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in kept}


def _check_failure_and_resuming(
    member: Executor, settings: BaseModel, context: Context, expected: Mapping[str, bytes]
) -> None:
    """Run with a file in place of the folder of outcomes, so that scores cannot be written; remove it and resume."""
    jobs, label = _jobs(context), member.name
    obstacle = context.run / "cache" / "outcomes"
    write_text(obstacle, "in the way")
    events: list[Event] = []
    error = _error(member, jobs, context, settings, events)
    assert error is not None, f"{label}: a job failed, and run returned without an error"
    assert "outcomes" in str(error), f"{label}: the error of the job must be raised or quoted, got: {error}"
    assert any(event.what == "failed" for event in events), f"{label}: no event says that the job failed"
    _check_order(label, jobs, events)
    done = {event.key for event in events if event.what == "done"}
    kinds = {job.kind for job in jobs if job.key in done}
    assert kinds == {"expert"}, f"{label}: what was done before the failure must stay done, got {kinds or 'nothing'}"
    obstacle.unlink()
    left = [job for job in jobs if not job.done(context.at(job.seed))]
    events.clear()
    member.run(left, context, settings, events.append)
    _check_order(label, left, events)
    started, finished = ([e.key for e in events if e.what == what] for what in ("started", "done"))
    wanted = sorted(job.key for job in left)
    assert sorted(started) == wanted, f"{label}: each job given must start once, and no other"
    assert sorted(finished) == wanted, f"{label}: each job given must be done once"
    assert _contents(context.run) == expected, f"{label}: the files differ from those of one process, bit for bit"


def _error(
    member: Executor, jobs: list[Job], context: Context, settings: BaseModel, events: list[Event]
) -> TangoraError | None:
    try:
        member.run(jobs, context, settings, events.append)
    except TangoraError as error:
        return error
    return None


def _check_order(label: str, jobs: list[Job], events: list[Event]) -> None:
    given, done, started = {job.key: job for job in jobs}, set[str](), set[str]()
    for event in events:
        assert event.key in given, f"{label}: an event of a job that was not given: {event.key[:12]}"
        job = given[event.key]
        if event.what == "started":
            early = [key for key in job.inputs if key in given and key not in done]
            assert not early, f"{label}: {job.label} was started before {given[early[0]].label if early else ''}"
            started.add(event.key)
        assert event.key in started, f"{label}: {job.label} {event.what} before it started"
        if event.what == "done":
            assert job.key not in done, f"{label}: {job.label} was done twice"
            done.add(event.key)


def _check_interruption(member: Executor, settings: BaseModel, context: Context) -> None:
    """Interrupt at the first event, and check that no process is left."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    try:
        member.run(_jobs(context), context, settings, interrupt)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError(f"{member.name}: run must raise KeyboardInterrupt")
    new = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    left = [child for child in new if "resource_tracker" not in " ".join(child.cmdline())]
    assert not left, f"{member.name}: processes go on after KeyboardInterrupt: {[child.pid for child in left]}"
    assert not list(context.run.rglob(".*.tmp-*")), f"{member.name}: a partly written file is left"
