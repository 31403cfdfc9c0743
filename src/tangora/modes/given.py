"""Take an existing adapter as the expert of a task: read it, check it against the base, and give it the base's names.

    adapter, its folder ─▶ fits the base? ─▶ names of the base's layers, head and record of the task ─▶ Adapter

It may come from elsewhere: of stock peft, of another class of the same model, of any rank, on any layers.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.adapter import Adapter, load_beside
from tangora.adapters.application import find_slots
from tangora.adapters.heads import HeadRecord, heads_digest
from tangora.errors import AdapterError, ModelError
from tangora.modes.belonging import refuse_another_base
from tangora.modes.contract import Footprint, mode_of
from tangora.modes.outcome import base_info, task_type
from tangora.support.files import digest
from tangora.tasks.fitting import with_head, with_present_names

if TYPE_CHECKING:
    from tangora.modes.contract import Mode
    from tangora.tasks import Base, Task

__all__ = ["content_digest", "expert_of", "footprint_of", "given_expert", "read_given"]


def read_given(source: Adapter | str | os.PathLike[str], base: Base) -> Adapter:
    """Read whatever `tangora.load` reads; with the base's folder if the updates depend on the base's weights.

    Args:
        source: an adapter, or what `tangora.load` accepts.
        base: of the adapter.

    Raises:
        FileError, AdapterError: see `tangora.load`.
    """
    return source if isinstance(source, Adapter) else load_beside(source, base.config.model, base.config.revision)


def given_expert(
    source: Adapter | str | os.PathLike[str],
    base: Base,
    task: Task | None = None,
    *,
    mode: Mode | None = None,
    same_base: bool = False,
    name: str | None = None,
    where: str = "adapters",
) -> Adapter:
    """Return an existing adapter as an expert: read, checked against the base, and named as the base's layers.

    Args:
        source: see `read_given`.
        base: it must have the layers that the adapter changes, in their shapes.
        task: the expert's, which decides its head and how it predicts; None if it is the expert of no task here.
        mode: of a recipe; the adapter must answer as adapters of this mode do.
        same_base: accept an adapter that was made for another name, or other weights, of the base.
        name: of the adapter, for errors; by default its folder.
        where: for errors.

    Raises:
        FileError, AdapterError: it cannot be read, or its head is of another task; see `tangora.load`.
        ModelError: it was made for another base, does not fit this one, or answers in another way than the mode.
    """
    name = _name_of(source) if name is None else name
    adapter = read_given(source, base)
    if mode is not None:
        _refuse_another_mode(adapter, mode, name, where)
    try:
        refuse_another_base(adapter, base, same_base=same_base)
    except ModelError as cause:
        got = {} if cause.got is None else {"got": cause.got}
        raise ModelError(f"{name}: {cause.what}", where=where, fix=cause.fix, **got) from cause
    fitted = _fitted(adapter, base, task)
    _refuse_unfit(fitted, base, name, where)
    return expert_of(fitted, base, task)


def expert_of(adapter: Adapter, base: Base, task: Task | None) -> Adapter:
    """Return an adapter that fits a base with a record of this base, and of the task that it is the expert of."""
    update: dict[str, Any] = {"base": base_info(base, adapter.metadata.base.adapted)}
    records = adapter.records
    if task is not None:
        update["task"] = task.name
        records = {task.name: HeadRecord.model_validate(task.record)} if task.record else {}
    heads = {n: head for n, head in adapter.heads.items() if task is None or n == task.name}
    made = replace(adapter, metadata=adapter.metadata.model_copy(update=update), heads=heads, records=records)
    if made.config is not None:
        named = {"base_model_name_or_path": base.config.model, "revision": base.commit}
        made = made.with_details(config={**made.config, **named})
    vars(made)["fingerprint"] = adapter.fingerprint
    return made


def content_digest(adapter: Adapter) -> str:
    """Return a hash of everything that decides an adapter's answers: updates, heads, φ₀ and the way it answers."""
    start = {site: update.digest() for site, update in sorted((adapter.initial or {}).items())}
    about = adapter.metadata
    return digest([adapter.fingerprint, heads_digest(adapter.heads), start, about.kind, about.train, about.modules])


def footprint_of(adapter: Adapter) -> Footprint:
    """Return the size of an adapter that exists, of which nothing is trained."""
    sizes, adapted = 0, 0
    for update in adapter.updates.values():
        factors, entries = update.factors(), math.prod(update.shape)
        sizes += entries if factors is None else factors.b.numel() + factors.a.numel()
        adapted += entries
    heads = sum(value.numel() for head in adapter.heads.values() for value in head.values())
    return Footprint(len(adapter.updates), 0, 4 * (sizes + heads), adapted)


def _name_of(source: Adapter | str | os.PathLike[str]) -> str:
    if isinstance(source, Adapter):
        return f"the adapter of {source.metadata.task}" if source.metadata.task else "the adapter"
    return os.fspath(source)


def _refuse_another_mode(adapter: Adapter, mode: Mode, name: str, where: str) -> None:
    """Refuse an adapter that answers in another way than the mode which a run treats it as."""
    own = mode_of(adapter)
    alike = own.answers == mode.answers and own.linear_in_coefficients == mode.linear_in_coefficients
    if own.name != mode.name and not (alike and own.kind == mode.kind and own.kind in ("lora", "full")):
        what = f"{name} is an adapter of train: {own.name}, which answers in another way"
        raise ModelError(what, got=f"train: {mode.name}", where=where, fix=f"set train: {own.name} in this mode")


def _fitted(adapter: Adapter, base: Base, task: Task | None) -> Adapter:
    """Return the adapter with the base's names, and its own head as that of the task."""
    if adapter.metadata.of_kind.adds_modules:
        return adapter
    own = adapter.metadata.task
    if task is not None and own is not None and task.name not in adapter.heads and own in adapter.heads:
        adapter = replace(adapter, heads={**adapter.heads, task.name: adapter.heads[own]})
        if own in adapter.records:
            adapter = replace(adapter, records={**adapter.records, task.name: adapter.records[own]})
    headed = adapter if task is None else with_head(adapter, base, task)
    fitted = with_present_names(headed, base)
    if fitted is adapter or fitted.config is None:
        return fitted
    # With other names, peft finds the layers in the base as the family loads it, not in the class that was saved.
    named = {"task_type": task_type(base, mode_of(adapter)), "auto_mapping": None}
    renamed = fitted.with_details(config={**fitted.config, **named})
    vars(renamed)["fingerprint"] = adapter.fingerprint
    return renamed


def _refuse_unfit(adapter: Adapter, base: Base, name: str, where: str) -> None:
    """Refuse an adapter with a layer that the base lacks, or has in another shape."""
    try:
        if not adapter.metadata.of_kind.adds_modules:
            find_slots(base.backbone, adapter)
            return
        with mode_of(adapter).answering(base, adapter, {}):
            return
    except (ModelError, AdapterError) as cause:
        own = adapter.metadata.base.model
        made_for = f", which was made for {own}," if own and Path(own).name != Path(base.config.model).name else ""
        what = f"{name}{made_for} does not fit {base.config.model}: {cause.what}, at {cause.where}"
        raise ModelError(what, where=where, fix="give the base that the adapter was made for") from cause
