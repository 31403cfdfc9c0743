"""An adapter of several tasks, to which experts are added: which tasks it answers, and what it gives to the start."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING

from tangora.errors import ArgumentError, FusionError

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.heads import HeadRecord
    from tangora.adapters.metadata import Metadata
    from tangora.tasks.values import Task

__all__ = ["answered_tasks", "experts_tasks", "from_it_alone", "without_tasks"]


def answered_tasks(metadata: Metadata | None, records: Mapping[str, HeadRecord]) -> list[str]:
    """Return the tasks that an adapter answers, as far as it says; the last polish counts before all else.

    Args:
        metadata: of the adapter, if it has any.
        records: how its tasks' rows are read.
    """
    if metadata is not None and metadata.polished is not None:
        return list(metadata.polished.experts)
    if records or metadata is None:
        return list(records)
    if named := metadata.joint or ([metadata.task] if metadata.task is not None else []):
        return list(named)
    parents = metadata.fused.parents if metadata.fused is not None else []
    return list(dict.fromkeys(parent.task for parent in parents if parent.task is not None))


def experts_tasks(recorded: Sequence[str | None], tasks: Sequence[Task], answered: Collection[str]) -> list[Task]:
    """Return the tasks that experts stand for; the present adapter answers the others.

    Args:
        recorded: what each expert calls its task. If one has no name, the experts' tasks come first, in their order.
        tasks: all tasks.
        answered: those of the present adapter; empty if it does not say.

    Raises:
        ArgumentError: neither an expert nor the present adapter is of a task.
    """
    unnamed = None in recorded
    own = list(tasks[: len(recorded)]) if unnamed else [task for task in tasks if task.name in recorded]
    if len(own) != len(recorded):
        return list(tasks)  # then the experts do not fit the tasks, which is said where they are paired
    known = {*answered, *(task.name for task in own)}
    odd = [task.name for task in tasks if task.name not in known] if answered else []
    if odd and unnamed:
        fix = f"give the experts' tasks first, in their order; the present adapter answers {', '.join(answered)}"
        raise ArgumentError("an expert does not name its task", got=odd[0], where="polish.adapters", fix=fix)
    if odd:
        fix = f"give its expert, or leave it out; the present adapter answers {', '.join(answered)}"
        raise ArgumentError("no adapter is of this task", got=odd[0], where="polish.tasks", fix=fix)
    return own


def without_tasks(adapter: Adapter, tasks: Set[str]) -> Adapter:
    """Return an adapter without heads and records of tasks that others stand for; its fingerprint stays its own."""
    if not tasks & (adapter.heads.keys() | adapter.records.keys()):
        return adapter
    heads = {name: head for name, head in adapter.heads.items() if name not in tasks}
    records = {name: record for name, record in adapter.records.items() if name not in tasks}
    fewer = replace(adapter, heads=heads, records=records)
    vars(fewer)["fingerprint"] = adapter.fingerprint
    return fewer


def from_it_alone(error: FusionError) -> FusionError:
    """Return the refusal to add experts of another kind, with the way that is left: to start without them."""
    alone = "begin from the present adapter alone: give it as --start, start=, too"
    fix = "; or ".join(filter(None, [error.fix, alone]))
    got = {} if error.got is None else {"got": error.got}
    return FusionError(error.what, where=error.where, fix=fix, **got)
