"""Which adapter belongs to which task: by name, by what the adapters record, or in order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tangora.adapters.adapter import Adapter
from tangora.errors import ArgumentError
from tangora.support.names import names_of, numbered

if TYPE_CHECKING:
    from tangora.tasks import Task

__all__ = ["AdapterLike", "Member", "members_of"]

AdapterLike: TypeAlias = "Adapter | str | os.PathLike[str]"


@dataclass(frozen=True)
class Member:
    """An adapter of a fusion.

    Attributes:
        name: that of its task, if it is a task's own.
        source: the adapter, or what `tangora.load` accepts.
        task: that it is the expert of; None if there are no rows of its task.
    """

    name: str
    source: AdapterLike
    task: Task | None = None


def members_of(
    adapters: Sequence[AdapterLike] | Mapping[str, AdapterLike],
    tasks: Sequence[Task],
    recorded: Sequence[str | None],
) -> list[Member]:
    """Pair adapters and tasks.

    With names, an adapter is that of the task with its name, if there is one. Without, it is that of the task that it
    records; and if no adapter records one of these tasks, and there is one for each, they are in the order of the
    tasks. What is left has no counterpart.

    Args:
        adapters: by name, or in order.
        tasks: with rows.
        recorded: the task that each adapter records; None if it records none.

    Raises:
        ArgumentError: there are no adapters or no tasks, or two adapters of one task.
    """
    if not adapters or not tasks:
        what = "no adapter" if not adapters else "no task with rows"
        raise ArgumentError(f"{what} to find coefficients for", got=0, where="search", fix="give at least one")
    of_name = {task.name: task for task in tasks}
    if isinstance(adapters, Mapping):
        return [Member(name, source, of_name.get(name)) for name, source in adapters.items()]
    known = [name if name in of_name else None for name in recorded]
    if len(set(recorded)) == 1 and len(adapters) > 1:  # a checkpoint's name, or all of one task: it tells nothing apart
        known = [None] * len(adapters)
    if not any(known) and len(adapters) == len(tasks):
        known = list(of_name)
    if twice := [name for name in of_name if known.count(name) > 1]:
        fix = "give them names: {'one': first, 'other': second}, of which one is the task's"
        raise ArgumentError("two adapters of one task", got=twice[0], where="search.adapters", fix=fix)
    folders = iter(names_of([one for one in adapters if not isinstance(one, Adapter)]))
    plain = [next(folders) if not isinstance(one, Adapter) else recorded[i] for i, one in enumerate(adapters)]
    others = [name if known[i] is None else None for i, name in enumerate(plain)]
    named = [known[i] or others[i] or f"adapter {i + 1}" for i in range(len(adapters))]
    unique = iter(numbered([*of_name, *(name for i, name in enumerate(named) if known[i] is None)])[len(of_name) :])
    return [Member(known[i] or next(unique), source, of_name.get(known[i] or "")) for i, source in enumerate(adapters)]
