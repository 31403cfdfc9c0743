"""Make the polished adapter from what was trained: its provenance, its names, and the experts' heads and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.heads import HeadRecord
from tangora.adapters.metadata import Metadata, PolishedInfo
from tangora.tasks.fitting import own_names

if TYPE_CHECKING:
    from tangora.polishing.lessons import Lesson
    from tangora.tasks import Base
    from tangora.updates.task_vector import Update

__all__ = ["made_adapter"]


def made_adapter(
    start: Adapter,
    base: Base,
    lessons: Sequence[Lesson],
    updates: Mapping[str, Update],
    embeddings: frozenset[str],
    info: PolishedInfo,
    *,
    full: bool,
) -> Adapter:
    """Return the polished adapter.

    Args:
        start: the adapter that was trained from.
        base: of the adapter.
        lessons: of the tasks.
        updates: with the backbone's names.
        embeddings: the sites that are embeddings.
        info: how it was polished.
        full: whether updates are changes of parameters.
    """
    tangent, was = info.settings["student"] == "tangent", start.metadata
    metadata = Metadata(
        kind="full" if full else "lora",
        mode="polish",
        train="full" if full else "tangent" if tangent else "lora",
        base=was.base,
        linearize="model" if tangent else "none",
        seed=info.seed,
        fused=None if info.start == "random" else was.fused,
        polished=info,
    )
    heads, records = _heads(start, lessons)
    if full:  # its parameters have the backbone's names, and peft does not read it
        return Adapter(updates, metadata, whole=start.whole, heads=heads, records=records)
    named = own_names(start, base)
    updates = {named.get(site, site): update for site, update in updates.items()}
    embeddings = frozenset(named.get(site, site) for site in embeddings)
    config = {**(start.config or {}), "task_type": None} if tangent else start.config  # see `adapter_of`
    details = LoraDetails(config, embeddings=embeddings, names=start.details.names)
    return Adapter(updates, metadata, details, whole=start.whole, heads=heads, records=records)


def _heads(start: Adapter, lessons: Sequence[Lesson]) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, HeadRecord]]:
    """Return heads and records of the tasks that were followed: each from its expert, or else the start's."""
    names = [one.task.name for one in lessons]  # those of a task that was dropped would promise what nobody measured
    heads: dict[str, Mapping[str, Tensor]] = {name: start.heads[name] for name in names if name in start.heads}
    records = {name: start.records[name] for name in names if name in start.records}
    for one in lessons:  # an expert may hold those of other tasks too, which nobody followed
        name = one.task.name
        heads |= {name: one.expert.heads[name]} if name in one.expert.heads else {}
        if one.task.record:  # of the rows that were followed: the expert's own may differ
            records[name] = HeadRecord(**one.task.record)
        elif name in one.expert.records:
            records[name] = one.expert.records[name]
    return heads, records
