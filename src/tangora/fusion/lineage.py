"""Check whether adapters may be fused, and derive what the fused adapter inherits from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.formats.lora.layers import expert_of, layer_of
from tangora.adapters.formats.lora.settings import parameters_of
from tangora.adapters.initial import fingerprint
from tangora.adapters.layouts.details import merged
from tangora.adapters.metadata import BaseInfo, FusedInfo, Metadata
from tangora.errors import ArgumentError, FusionError
from tangora.storage.quantization import twin_of
from tangora.support.names import hub_name
from tangora.support.seams import MODES
from tangora.updates.task_vector import LowRank, TaskVector, Update

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["check", "check_belongs", "fingerprint_of", "inherit", "is_same", "truncate", "unproved_base"]

_WHERE = "fuse.adapters"
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_LISTS = ("modules_to_save", "target_parameters")
_T = TypeVar("_T")


def check(adapters: Sequence[Adapter], names: Sequence[str], same_base: bool) -> None:
    """Refuse adapters of different kinds, bases, shapes, or starting functions, and tangent ones among others.

    Raises:
        ArgumentError: there are none.
        FusionError: two of them differ; the message names both, and the site.
    """
    if not adapters:
        raise ArgumentError("nothing to fuse", got=0, where=_WHERE, fix="give at least one adapter")
    a, x = names[0], adapters[0]
    bases: dict[BaseInfo, str] = {}
    owners: dict[str, tuple[str, Adapter]] = {}
    for b, y in zip(names, adapters, strict=True):
        if x.metadata.kind != y.metadata.kind:
            what = f"{a} is of kind {x.metadata.kind}, {b} of kind {y.metadata.kind}"
            raise FusionError(what, where=_WHERE, fix="fuse adapters of one kind")
        _refuse_modules(b, y, x)
        if x.metadata.expanded != y.metadata.expanded:
            _refuse_expanded(*((a, b) if x.metadata.expanded else (b, a)))
        bases.setdefault(y.metadata.base, b)
        _check_sites(b, y, owners)
        if not _same_factors(x.start, y.start):
            what = f"{a} and {b} started from different functions: B₀A₀ is not zero and differs"
            what += f", φ₀ has fingerprints {fingerprint_of(x.start)} and {fingerprint_of(y.start)}"
            raise FusionError(what, where=_WHERE, fix="train them with a_init: shared, or with B₀ = 0")
    for (one, first), (other, second) in combinations(bases.items(), 2) if not same_base else ():
        _check_base(first, one, second, other)


def _refuse_modules(name: str, adapter: Adapter, first: Adapter) -> None:
    """Refuse adapters with modules of their own, unless their mode says that these add up, and they are built alike."""
    metadata = adapter.metadata
    if not metadata.of_kind.adds_modules:
        return
    fusable = getattr(MODES.get(metadata.train), "fusable", False)
    if metadata.of_kind.routed or not (fusable(metadata.modules or {}) if callable(fusable) else fusable):
        what = f"{name} adds modules to the network, whose sum is no function that was trained"
        fix = "give the adapters that it was made of" if metadata.fused is not None else "use it as it is"
        raise FusionError(what, got=f"mode {metadata.train}", where=_WHERE, fix=fix)
    if (metadata.train, metadata.modules) != (first.metadata.train, first.metadata.modules):
        fix = "fuse adapters that were trained with the same settings"
        raise FusionError(f"the added modules of {name} are built in another way", where=_WHERE, fix=fix)


def _refuse_expanded(expanded: str, ordinary: str) -> None:
    """Refuse a sum of changes that stand for different functions: no network answers as both were trained."""
    what = f"{expanded} was trained in the network's expansion (tangent), {ordinary} in the ordinary network"
    fix = f"fuse adapters of one mode: train them in one, or make {expanded} an ordinary LoRA with tangora distill"
    raise FusionError(what, where=_WHERE, fix=fix)


def _check_base(a: str, x: BaseInfo, b: str, y: BaseInfo) -> None:
    fix = "fuse adapters of one base; if the two are the same weights, use same_base=True, --same-base"
    if x.fingerprint and y.fingerprint:
        different = x.fingerprint != y.fingerprint
    else:
        different = _known(x.model) != _known(y.model) or bool(x.revision and y.revision and x.revision != y.revision)
    if different:
        raise FusionError(f"different bases: {a} has {_base(x)}, {b} has {_base(y)}", where=_WHERE, fix=fix)


def check_belongs(adapters: Sequence[Adapter], names: Sequence[str], base: Checkpoint) -> None:
    """Refuse a base folder that is not the base which the adapters name, if both are named.

    Folders are renamed and moved, so only the last parts of the names are compared, and the folder's name is accepted.
    In the Hub's cache the path contains the model's name, which counts alone.

    Raises:
        FusionError: the names differ; the message has both.
    """
    stated = base.model or ""
    accepted = {_last(stated), _last(base.name)}
    for name, adapter in zip(names, adapters, strict=True):
        made_for = adapter.metadata.base.model
        if stated and made_for and _last(made_for) not in accepted:
            what = f"{name} was made for {_base(adapter.metadata.base)}, the base given is {stated}"
            fix = "give the adapters' base; if the two are the same weights, use same_base=True, --same-base"
            if (twin := twin_of(made_for)) is not None:
                if _last(twin) in accepted:
                    continue
                what += f"; {made_for} is quantized, by its name"
                fix = f"give {twin} in full precision, with same_base=True, --same-base if its name differs"
            raise FusionError(what, where="fuse.base", fix=fix)


def unproved_base(adapters: Sequence[Adapter], names: Sequence[str], base: Checkpoint) -> list[str]:
    """Return a sentence if an adapter was trained on quantized weights, or if the base may be another.

    Then its shapes fit, but whether it has the weights that the adapter was made for is not known.
    """
    for name, adapter in zip(names, adapters, strict=True):
        made_for = adapter.metadata.base.model
        if made_for and twin_of(made_for) is not None and twin_of(base.name) is None:
            what = f"{name} was trained beside the quantized weights of {made_for}, and these are the full ones"
            return [f"{what}: the model differs from the trained one by what quantization lost; score it"]
        if not base.model and made_for and _last(made_for) != _last(base.name):
            return [f"{name} was made for {made_for}: it is not known if {base.name} has the same weights"]
    return []


def _last(model: str) -> str:
    return PurePath(hub_name(model) or model).name.lower()


def _known(model: str | None) -> str | None:
    """Return the Hub's name for a path in its cache, and any other name as it is."""
    return model and (hub_name(model) or model)


def _base(base: BaseInfo) -> str:
    details = f", revision {base.revision}" if base.revision else ""
    details += f", weights {base.fingerprint[:12]}" if base.fingerprint else ""
    details += f", held in {base.weights}" if base.weights not in (None, "float32") else ""
    return (base.model or "no name") + details


def _check_sites(b: str, y: Adapter, owners: dict[str, tuple[str, Adapter]]) -> None:
    """Compare each site with the first adapter that has it; fill ``owners``."""
    fix = "fuse adapters of one base"
    for site, update in y.updates.items():
        a, x = owners.setdefault(site, (b, y))
        if x is y:
            continue
        if x.updates[site].shape != update.shape:
            what = f"the widths differ: {a} has {x.updates[site].shape}, {b} has {update.shape}"
            raise FusionError(what, where=site, fix=fix)
        if (site in x.embeddings) != (site in y.embeddings):
            raise FusionError(f"the site is an embedding in only one of {a} and {b}", where=site, fix=fix)
        if x.kernels.get(site) != y.kernels.get(site):
            what = f"the kernels differ: {a} has {x.kernels.get(site)}, {b} has {y.kernels.get(site)}"
            raise FusionError(what, where=site, fix=fix)
        if expert_of(site) and not x.metadata.of_kind.by_parameter:
            mine, theirs = (parameters_of(z.config, layer_of(site)) for z in (x, y))
            if mine != theirs:
                what = f"different parameters of one module are adapted: {a} has {mine}, {b} has {theirs}"
                raise FusionError(what, where=site, fix="fuse adapters of equal target_parameters")


def _same_factors(x: Mapping[str, LowRank], y: Mapping[str, LowRank]) -> bool:
    return x.keys() == y.keys() and all(x[s].scaling == y[s].scaling and is_same(x[s], y[s]) for s in x)


def fingerprint_of(initial: Mapping[str, LowRank]) -> str:
    """Return the first characters of φ₀'s fingerprint, for a message."""
    return fingerprint(initial)[:12]


def is_same(x: LowRank, y: LowRank) -> bool:
    """Return whether two factorizations are equal, ignoring the scaling."""
    return x is y or (torch.equal(x.a, y.a) and torch.equal(x.b, y.b))


def _rank(update: Update) -> int | None:
    factors = update.factors()
    return None if factors is None else factors.rank


def inherit(parents: Sequence[Adapter], updates: Mapping[str, Update], fused: FusedInfo) -> Adapter:
    """Return the fused adapter: the given updates, and everything on which all parents agree."""
    each = [parent.metadata for parent in parents]
    initial = _initial(parents, updates)
    drawn = _common(m.initial for m in each) if initial is parents[0].initial else None
    mode = _common(m.train for m in each)
    metadata = Metadata(
        kind=each[0].kind,
        mode=_common(m.mode for m in each),
        task=each[0].task if len(each) == 1 else None,
        # what is fused no longer depends on the base's weights
        base=next((m.base for m in each if m.base.fingerprint), each[0].base).model_copy(update={"adapted": None}),
        linearize=_common(m.linearize for m in each) or "none",
        modules=_common(m.modules for m in each),
        initial=drawn if initial is not None else None,
        fused=fused,
        **({"train": mode} if mode is not None else {}),  # if modes differ, it follows from kind and linearize
    )
    embeddings = frozenset().union(*(parent.embeddings for parent in parents))
    kernels = {site: kernel for parent in parents for site, kernel in parent.kernels.items()}
    files = [file for parent in parents if (file := parent.details.file) is not None]
    layout = merged(files, [parent.name for parent in fused.parents]) if len(files) == len(parents) else None
    return Adapter(updates, metadata, LoraDetails(_config(parents), initial, embeddings, kernels, file=layout))


def _initial(parents: Sequence[Adapter], updates: Mapping[str, Update]) -> Mapping[str, LowRank] | None:
    """Return the shared φ₀ if the result can be compared with it: the ranks are equal, or B₀A₀ is not zero."""
    first = parents[0]
    shared = first.initial is not None and all(
        parent.initial is not None and _same_factors(first.initial, parent.initial) for parent in parents[1:]
    )
    if first.start:
        return first.initial if shared else first.start
    if not shared or first.initial is None or not updates.keys() <= first.initial.keys():
        return None
    return first.initial if all(_rank(u) == first.initial[s].rank for s, u in updates.items()) else None


def _config(parents: Sequence[Adapter]) -> dict[str, Any] | None:
    configs = [dict(parent.config) for parent in parents if parent.config is not None]
    if not configs:
        return None
    config = configs[0]
    agree = all(_selected(c) == _selected(config) for c in configs[1:])
    config |= {} if agree else dict.fromkeys(_SELECTION)  # then saving names every site
    task_type = _common(c.get("task_type") for c in configs)
    config |= {"task_type": task_type, "fan_in_fan_out": any(c.get("fan_in_fan_out") for c in configs)}
    for key in _LISTS:
        config[key] = sorted({name for c in configs for name in c.get(key) or ()}) or None
    return config


def _selected(config: Mapping[str, Any]) -> list[Any]:
    return [sorted(v) if isinstance(v := config.get(key), list | tuple | set) else v for key in _SELECTION]


def _common(values: Iterable[_T]) -> _T | None:
    first, *others = values
    return first if all(value == first for value in others) else None


def truncate(fused: Adapter, rank: int, errors: Mapping[str, float]) -> Adapter:
    """Truncate every site of the adapter to ``rank``; if ``errors`` are given, it has been truncated already."""
    updates = TaskVector(fused.updates)
    smaller, site_errors = (updates, dict(errors)) if errors else updates.compress_by_site(rank)
    info = fused.metadata.fused
    assert info is not None
    change = {"rank": rank, "truncation_error": smaller.total_error(site_errors), "site_errors": site_errors}
    metadata = fused.metadata.model_copy(update={"fused": info.model_copy(update=change)})
    other_factors = bool(errors) or any(update is not updates[site] for site, update in smaller.items())
    if not fused.start and other_factors:  # new factors cannot be compared with φ₀
        metadata = metadata.model_copy(update={"initial": None})
        return replace(fused, updates=dict(smaller), metadata=metadata).with_details(initial=None)
    return replace(fused, updates=dict(smaller), metadata=metadata)
