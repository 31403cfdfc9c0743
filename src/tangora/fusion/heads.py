"""What a fused adapter has of what its parents saved whole: heads kept per task or averaged, biases summed.

A head (``modules_to_save``) has no common start that could be subtracted: it was often made for its task. So several
of them are either kept, one file per task, or averaged; the caller chooses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tangora.adapters.heads import HeadRecord, heads_digest
from tangora.errors import ArgumentError, FusionError
from tangora.fusion.weights import WeightTable
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Heads", "carried_records", "check_heads", "fuse_whole"]

Heads: TypeAlias = Literal["keep", "fuse"]
Named: TypeAlias = "Mapping[str, Tensor]"
_SAY = "say heads='keep', --heads keep, for a file per task, or heads='fuse', --heads fuse, for their weighted mean"
_BASE = "give the base's folder, with --base or base=, from which the biases differ"


def check_heads(heads: object) -> None:
    """Refuse a treatment of heads that does not exist.

    Raises:
        ArgumentError: it is neither ``keep`` nor ``fuse``.
    """
    if heads is not None and heads not in get_args(Heads):
        fix = did_you_mean(str(heads), list(get_args(Heads)))
        raise ArgumentError("heads are kept or fused", got=heads, where="fuse.heads", fix=fix)


def fuse_whole(
    adapters: Sequence[Adapter],
    names: Sequence[str],
    weights: WeightTable,
    coefficients: Sequence[float] | None,
    heads: Heads | None,
) -> tuple[dict[str, Tensor], dict[str, Named]]:
    """What a fused adapter has of what its parents saved whole: values that replace the base's, and heads kept apart.

    Args:
        adapters, names: the parents.
        weights: λ, by which heads are averaged.
        coefficients: of a linear method; biases that were saved whole are exact where these sum to one.
        heads: what becomes of heads that differ.

    Raises:
        FusionError: heads differ and ``heads`` does not say what to do, or cannot be done; biases whose fusion depends
            on those of the base.
    """
    carried = _carried(adapters)
    biases = [{n: t for n, t in a.whole.items() if _is_bias(n, a)} for a in adapters]
    modules = [{n: t for n, t in a.whole.items() if not _is_bias(n, a)} for a in adapters]
    whole = _biases(biases, coefficients)
    if not any(modules) or _all_equal(modules):
        return whole | dict(modules[0]), carried
    if heads == "fuse":
        return whole | _mean(modules, names, weights), carried
    if heads == "keep":
        kept = {_file_name(name): named for name, named in zip(names, modules, strict=True) if named}
        if len(kept) != sum(map(bool, modules)) or kept.keys() & carried.keys():
            raise FusionError("two heads of one name", got=list(names), where="fuse.heads", fix="rename the folders")
        return whole, carried | kept
    first = next(name for named in modules for name in named)
    raise FusionError("adapters with heads of their own, modules_to_save", got=first, where="fuse.heads", fix=_SAY)


def carried_records(adapters: Sequence[Adapter]) -> dict[str, HeadRecord]:
    """Return task -> what prediction needs, of every task that the adapters agree on."""
    records: dict[str, list[HeadRecord]] = {}
    for adapter in adapters:
        for task, record in adapter.records.items():
            if record not in records.setdefault(task, []):
                records[task].append(record)
    return {task: found[0] for task, found in records.items() if len(found) == 1}


def _carried(adapters: Sequence[Adapter]) -> dict[str, Named]:
    """Heads that the adapters hold per task; two of one task must be equal."""
    carried: dict[str, Named] = {}
    for adapter in adapters:
        for task, named in adapter.heads.items():
            if task in carried and heads_digest({task: named}) != heads_digest({task: carried[task]}):
                fix = "fuse one adapter of each task, or give the tasks different names"
                raise FusionError("two adapters have different heads for one task", got=task, where="heads", fix=fix)
            carried[task] = named
    return carried


def _is_bias(name: str, adapter: Adapter) -> bool:
    config = adapter.config or {}
    modules = config.get("modules_to_save") or ()
    return name.endswith(".bias") and not any(f".{m}." in f".{name}" for m in modules)


def _biases(biases: Sequence[Named], coefficients: Sequence[float] | None) -> dict[str, Tensor]:
    """``b₀ + Σ cₜ (bₜ − b₀) = Σ cₜ bₜ`` where Σ cₜ = 1; else the base's are needed, which are not here."""
    if not any(biases):
        return {}
    exact = coefficients is not None and math.isclose(math.fsum(coefficients), 1.0, rel_tol=1e-12)
    same = all(named.keys() == biases[0].keys() for named in biases)
    if not exact or not same or coefficients is None:
        name = next(name for named in biases for name in named)
        what = "biases that were saved whole, bias='all' or 'lora_only'"
        raise FusionError(f"{what}: their change is not known", got=name, where="fuse.adapters", fix=_BASE)
    return {name: _sum([named[name] for named in biases], coefficients, name) for name in biases[0]}


def _mean(modules: Sequence[Named], names: Sequence[str], weights: WeightTable) -> dict[str, Tensor]:
    place = "fuse.heads"
    for name, named in zip(names, modules, strict=True):
        if odd := sorted(named.keys() ^ modules[0].keys()):
            what = f"heads are fused by name, and {names[0]} and {name} do not have the same"
            raise FusionError(what, got=odd[0], where=place, fix="use heads='keep', --heads keep")
    if isinstance(weights, dict):
        fix = "give one weight per adapter, or keep the heads"
        raise FusionError("weights per site do not say how to average heads", where=place, fix=fix)
    total = math.fsum(weights)
    if total <= 0 or min(weights) < 0:
        fix = "give positive weights, or keep the heads"
        raise FusionError(
            "heads are averaged by their weights, which must be positive", got=weights, where=place, fix=fix
        )
    share = [weight / total for weight in weights]
    return {name: _sum([named[name] for named in modules], share, name) for name in modules[0]}


def _sum(tensors: Sequence[Tensor], coefficients: Sequence[float], name: str) -> Tensor:
    shapes = list(dict.fromkeys(tuple(t.shape) for t in tensors))
    if len(shapes) > 1:
        raise FusionError("parameters of one name must have one shape", got=shapes, where=name, fix="keep the heads")
    total = torch.zeros(shapes[0], dtype=torch.float64)
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        total.add_(tensor.double(), alpha=coefficient)
    return total.to(tensors[0].dtype)


def _all_equal(modules: Sequence[Named]) -> bool:
    first = modules[0]
    return all(
        named.keys() == first.keys() and all(torch.equal(named[n], first[n]) for n in first) for named in modules[1:]
    )


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "head"
