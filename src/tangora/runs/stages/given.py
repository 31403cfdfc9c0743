"""Take existing adapters as experts: checked against the base, and copied into the run's folder.

RUN/adapters/<mode>/<task>/

A copy is a folder like that of a trained expert, so that everything after it is the same. Its key covers the adapter's
content: another adapter under the same name is another expert. A run whose adapters are gone goes on with its copies.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tangora.config.recipe import Recipe
from tangora.errors import AdapterError, FileError
from tangora.modes.contract import mode_of
from tangora.modes.given import content_digest, given_expert
from tangora.runs.stages.experts import ExpertJob
from tangora.support.files import digest, read_json
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.runs.context import Context
    from tangora.tasks import Base, Task

__all__ = ["GivenJob", "given_digests", "given_key", "given_of"]

log = logging.getLogger("tangora")

_RECORD = "training.json"


@dataclass(frozen=True)
class GivenJob(ExpertJob):
    """Copy an existing adapter to where the trained ones are.

    Attributes:
        content: hash of the adapter that the run was planned with.
    """

    kind: ClassVar[str] = "given"
    stage: ClassVar[str] = "given adapters"
    content: str

    @property
    def about(self) -> str:
        """Mode and task."""
        return f"{self.mode} · {self.tasks[0]} · given"

    def run(self, context: Context) -> None:
        """Read the adapter, check it again, and write the copy with its record of training, if it has one."""
        (name,) = self.tasks
        context.progress.begin(self.label, 1)
        adapter = given_of(context.recipe, self.mode, context.task(name), context.base)
        if content_digest(adapter) != self.content:
            fix = "start tangora run again: it computes everything that depends on it again"
            raise AdapterError("the adapter changed since the run was planned", where=_where(self.mode, name), fix=fix)
        stamped = replace(adapter, metadata=adapter.metadata.model_copy(update={"stage": self.key}))
        source = Path(os.fspath(context.recipe.modes[self.mode].experts[name])) / _RECORD
        beside = {_RECORD: source} if source.is_file() else {}
        stamped.save(context.adapter(self.mode, name), overwrite=True, beside=beside)
        context.experts.forget(self.mode, name)
        context.progress.advance()
        context.progress.end()

    def is_earlier(self, context: Context) -> bool:
        """Return False: no earlier version took adapters."""
        return False


def given_of(recipe: Recipe, mode: str, task: Task, base: Base) -> Adapter:
    """Return the adapter that a mode is given for a task, checked.

    Raises:
        FileError, AdapterError, ModelError: it cannot be read, or does not fit; the message has both names.
    """
    chosen, where = recipe.modes[mode], _where(mode, task.name)
    source = chosen.experts[task.name]
    try:
        return given_expert(source, base, task, mode=mode_of(chosen), same_base=chosen.same_base, where=where)
    except FileError as cause:
        got = {} if cause.got is None else {"got": cause.got}
        what = f"{cause.what}, at {cause.where}"
        raise type(cause)(what, where=f"{where}: {source}", fix=cause.fix, **got) from cause


def given_digests(
    run: Path, recipe: Recipe, base: Base, tasks: Mapping[str, Task], before: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Read and check every adapter that is given, and return mode -> task -> hash of its content.

    Args:
        run: the run's folder.
        recipe: of the run.
        base, tasks: loaded.
        before: those that the run was planned with. If an adapter is not there any more, but its copy is, they count.

    Raises:
        TangoraError: an adapter cannot be read, or does not fit the base; the message has both names.
    """
    found: dict[str, dict[str, str]] = {}
    for mode, chosen in recipe.modes.items():
        for name in (one for one in tasks if one in chosen.experts):
            known = before.get(mode, {}).get(name)
            try:
                content = content_digest(given_of(recipe, mode, tasks[name], base))
            except FileError:
                if known is None or not _is_copied(run, mode, name) or Path(chosen.experts[name]).exists():
                    raise
                log.warning("%s · %s: %s cannot be read; the run has a copy", mode, name, chosen.experts[name])
                content = known
            found.setdefault(mode, {})[name] = content
    return found


def _is_copied(run: Path, mode: str, task: str) -> bool:
    try:
        return bool(read_json(run / "adapters" / mode / task / "tangora.json").get("stage"))
    except FileError:
        return False


def given_key(recipe: Recipe, mode: str, base: str, task: str, rows: str, content: str) -> str:
    """Return the key of a copy.

    Args:
        recipe, mode: its name, and how its adapters answer.
        base: identity of the base.
        task: the name.
        rows: fingerprint of the task's data, with how they are read.
        content: see `content_digest`.
    """
    code = source_digest(given_expert, GivenJob, without=("tangora.errors", "tangora.progress"))
    return digest(["given-1", code, mode, recipe.modes[mode].train, base, task, rows, content])


def _where(mode: str, task: str) -> str:
    return f"modes.{mode}.experts.{task}"
