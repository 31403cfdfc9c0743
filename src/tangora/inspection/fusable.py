"""Determine from inspected folders whether they can be fused, in which spaces, and by which methods."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tangora.adapters.layouts.common import in_one_layout
from tangora.checkpoints.align import align
from tangora.checkpoints.onto_base import align_adapters
from tangora.checkpoints.steps import check_method
from tangora.checkpoints.tied import untied
from tangora.errors import TangoraError
from tangora.fusion.contract import space_of
from tangora.fusion.lineage import check
from tangora.fusion.routed import check_experts
from tangora.inspection.folders import Inspected, adapters_of, checkpoints_of
from tangora.methods import Method, methods
from tangora.storage.checkpoint import refuse_quantized
from tangora.support.names import names_of
from tangora.support.seams import ROUTERS, SPACES
from tangora.support.shown import one_line

__all__ = ["Fusable", "fusable"]


@dataclass(frozen=True)
class Fusable:
    """Whether a set of adapters and checkpoints can be fused.

    Attributes:
        spaces: space (``full``: a full checkpoint) -> the methods that can fuse the set in it.
        reasons: space -> why not; ``all`` if there is no space.
        notes: options that the command line needs.
        routers: the routers that can choose among the set.
    """

    spaces: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    routers: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        spaces = (f"{len(methods)} methods in {space}" for space, methods in self.spaces.items())
        return one_line("Fusable", *spaces, self.reasons.get("all"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as JSON values."""
        return dict(vars(self))


def fusable(inspected: Sequence[Inspected]) -> Fusable:
    """Return whether all of them can be fused together; a single one counts too."""
    answer = Fusable()
    for one in inspected:
        if one.problem is not None:
            answer.reasons["all"] = one.problem
            return answer
    try:
        for checkpoint in checkpoints_of(inspected):
            refuse_quantized(checkpoint)
    except TangoraError as reason:
        answer.reasons["all"] = str(reason)
        return answer
    adapters, checkpoints = adapters_of(inspected), checkpoints_of(inspected)
    if adapters and len(checkpoints) > 1:
        answer.reasons["all"] = "adapters and more than one checkpoint: fuse the adapters onto one base"
    elif adapters:
        _adapters(adapters, answer)
        if checkpoints and answer.spaces:
            _full(answer, lambda: align_adapters(untied(checkpoints[0]), *_vectors(adapters)), len(adapters))
    elif len(checkpoints) > 1:
        base, *models = checkpoints
        answer.notes.append(f"the first, {base.name}, is used as the base")
        _full(answer, lambda: align(base, models), len(models))
    else:
        answer.reasons["all"] = "one checkpoint: give the models that were fine-tuned from it, or adapters for it"
    return answer


def _vectors(adapters: Sequence[Inspected]) -> tuple[list[Any], list[Any]]:
    return [one.content.updates for one in adapters], [one.content for one in adapters]


def _adapters(adapters: Sequence[Inspected], answer: Fusable) -> None:
    opened, names = [one.content for one in adapters], names_of([one.path for one in adapters])
    try:
        opened = in_one_layout(opened, names, values=False)
        check(opened, names, same_base=False)
    except TangoraError as reason:
        answer.reasons["all"] = str(reason)
        return
    for name, router in ROUTERS.all().items():
        if getattr(router, "linearized", False) and any(one.metadata.linearize != "module" for one in opened):
            continue
        with contextlib.suppress(TangoraError):
            check_experts(opened, names, getattr(router, "kinds", ("lora",)))
            answer.routers.append(name)
    for name in sorted(SPACES, key=lambda name: name != "delta"):
        try:
            space = space_of(name)
            if name != "delta" and (odd := [i for i, one in enumerate(opened) if one.details.tuner]):
                answer.reasons[name] = f"{names[odd[0]]} is of {opened[odd[0]].details.tuner}, which has no factors"
                continue
            if not space.needs_start:
                space.check(opened, names)
            elif reason_not := _other_starts(adapters, names):
                answer.reasons[name] = reason_not
                continue
        except TangoraError as reason:
            answer.reasons[name] = str(reason)
            continue
        taken = (m for m in methods().values() if _takes(m, len(adapters)))
        answer.spaces[name] = [m.name for m in taken if space.plain or not m.statistics]
    _notes(adapters, answer)


def _notes(adapters: Sequence[Inspected], answer: Fusable) -> None:
    if reasons := sorted({one.needs_base for one in adapters if one.needs_base}):
        answer.notes.append(f"needs --base: {'; '.join(reasons)}")
    if any(one.heads for one in adapters) and len(adapters) > 1:
        answer.notes.append("parameters are saved whole: --heads keep or --heads fuse, unless they are equal")
    if needing := [m.name for m in methods().values() if m.statistics]:
        answer.notes.append(f"needs --statistics: {', '.join(needing)}")


def _takes(method: Method, count: int) -> bool:
    return method.tasks is None or method.tasks == count


def _other_starts(adapters: Sequence[Inspected], names: Sequence[str]) -> str | None:
    """Return why a space that needs φ₀ refuses them, by the fingerprint in ``tangora.json``: φ₀ is not loaded."""
    first = adapters[0]
    for name, one in zip(names, adapters, strict=True):
        if one.initial is None:
            return f"φ₀ of {name} is not known"
        if one.initial != first.initial:
            return f"φ₀ differs: {names[0]} has {str(first.initial)[:12]}, {name} has {one.initial[:12]}"
        mine, theirs = _factors(first), _factors(one)
        if odd := sorted(mine.items() ^ theirs.items()):
            return f"sites, ranks or scalings differ: {names[0]} and {name} at {odd[0][0]}"
    return None


def _factors(one: Inspected) -> dict[str, tuple[int, float]]:
    return {s: (f.rank, f.scaling) for s, u in one.content.updates.items() if (f := u.factors()) is not None}


def _full(answer: Fusable, attempt: Any, count: int) -> None:
    try:
        attempt()
    except TangoraError as reason:
        answer.reasons["full"] = str(reason)
        return
    taken = []
    for method in methods().values():
        try:
            check_method(method)
        except TangoraError:
            continue
        if _takes(method, count) and not method.statistics:
            taken.append(method.name)
    answer.spaces["full"] = taken
