"""Fuse the parameters that adapters saved whole: heads are kept per task or averaged, biases are summed.

Heads (``modules_to_save``) have no common start that could be subtracted: a head is often initialized for its task. So
the caller chooses to keep them, one file per task, or to average them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tangora.adapters.formats.lora.settings import is_bias_alone, is_in_saved_module
from tangora.adapters.heads import HeadRecord, heads_digest
from tangora.errors import ArgumentError, FusionError
from tangora.fusion.weights import WeightTable
from tangora.storage.vocabulary import is_vocabulary
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Heads", "carried_heads", "carried_records", "check_heads", "file_name", "fuse_whole"]

Heads: TypeAlias = Literal["keep", "fuse"]
Tensors: TypeAlias = "Mapping[str, Tensor]"
_FIX = "use heads='keep', --heads keep, for one file per task, or heads='fuse', --heads fuse, for their weighted mean"
_BASE_WHOLE = "give the base's folder, with --base or base=, to weight their changes"
_BASE = "give the base's folder, with --base or base=, from which the biases differ"


def check_heads(heads: object) -> None:
    """Refuse a treatment of heads that does not exist.

    Raises:
        ArgumentError: it is neither ``keep`` nor ``fuse``.
    """
    if heads is not None and heads not in get_args(Heads):
        fix = did_you_mean(str(heads), list(get_args(Heads)))
        raise ArgumentError("heads must be keep or fuse", got=heads, where="fuse.heads", fix=fix)


def fuse_whole(
    adapters: Sequence[Adapter],
    names: Sequence[str],
    weights: WeightTable,
    coefficients: Sequence[float] | None,
    heads: Heads | None,
) -> tuple[dict[str, Tensor], dict[str, Tensors]]:
    """Fuse the parameters that the parents saved whole; return values that replace the base's, and heads by task.

    Args:
        adapters, names: the parents.
        weights: λ, the weights of the heads' mean.
        coefficients: of a linear method; biases that were saved whole are exact if these sum to one.
        heads: how to treat heads that differ.

    Raises:
        FusionError: heads differ and ``heads`` is None, or they cannot be averaged; the fusion of biases depends on
            the base's biases.
    """
    carried = carried_heads(adapters)
    biases = [{n: t for n, t in a.whole.items() if _is_bias(n, a)} for a in adapters]
    modules = [{n: t for n, t in a.whole.items() if not _is_bias(n, a)} for a in adapters]
    whole = _biases(biases, coefficients) | _agreed(adapters)
    modules = [{n: t for n, t in named.items() if n not in whole} for named in modules]
    if not any(modules) or _all_equal(modules):
        return whole | dict(modules[0]), carried
    if heads == "fuse":
        return whole | _mean(modules, names, weights), carried
    if heads == "keep":
        kept = {file_name(name): named for name, named in zip(names, modules, strict=True) if named}
        if len(kept) != sum(map(bool, modules)) or kept.keys() & carried.keys():
            raise FusionError("two heads of one name", got=list(names), where="fuse.heads", fix="rename the folders")
        return whole, carried | kept
    first = next(name for named in modules for name in named)
    if any(is_vocabulary(name) for named in modules for name in named):
        what = "the adapters saved embeddings of tokens whole, and these, or their numbers of rows, differ"
        shapes = {name: list(named[first].shape) for name, named in zip(names, modules, strict=True) if first in named}
        fix = f"{_BASE_WHOLE}; or {_FIX}"
        raise FusionError(what, got=f"{first} {shapes}", where="fuse.heads", fix=fix)
    raise FusionError("the adapters' heads (modules_to_save) differ", got=first, where="fuse.heads", fix=_FIX)


def _agreed(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Return the embeddings of tokens on which all parents that saved them agree.

    peft adds these by itself, untrained, to the adapters of a resized vocabulary only, so not every parent has them.
    """
    found: dict[str, Tensor] = {}
    for name in sorted({name for adapter in adapters for name in adapter.whole if is_vocabulary(name)}):
        holders = [adapter for adapter in adapters if name in adapter.whole]
        first, *others = (adapter.whole[name] for adapter in holders)
        trained = any(is_in_saved_module(name, (a.config or {}).get("modules_to_save") or ()) for a in holders)
        if not trained and all(torch.equal(first, other) for other in others):
            found[name] = first
    return found


def carried_records(adapters: Sequence[Adapter]) -> dict[str, HeadRecord]:
    """Return task -> what prediction needs, for every task that the adapters agree on."""
    records: dict[str, list[HeadRecord]] = {}
    for adapter in adapters:
        for task, record in adapter.records.items():
            if record not in records.setdefault(task, []):
                records[task].append(record)
    return {task: different[0] for task, different in records.items() if len(different) == 1}


def carried_heads(adapters: Sequence[Adapter]) -> dict[str, Tensors]:
    """Return the adapters' heads by task; two heads of one task must be equal.

    Raises:
        FusionError: two adapters have different heads for one task.
    """
    carried: dict[str, Tensors] = {}
    for adapter in adapters:
        for task, named in adapter.heads.items():
            if task in carried and heads_digest({task: named}) != heads_digest({task: carried[task]}):
                fix = "fuse one adapter of each task, or give the tasks different names"
                raise FusionError("two adapters have different heads for one task", got=task, where="heads", fix=fix)
            carried[task] = named
    return carried


def _is_bias(name: str, adapter: Adapter) -> bool:
    return is_bias_alone(name, adapter.config)


def _biases(biases: Sequence[Tensors], coefficients: Sequence[float] | None) -> dict[str, Tensor]:
    """Return ``b₀ + Σ cₜ (bₜ − b₀) = Σ cₜ bₜ`` if Σ cₜ = 1; else the base's b₀ would be needed, so refuse them."""
    if not any(biases):
        return {}
    exact = coefficients is not None and math.isclose(math.fsum(coefficients), 1.0, rel_tol=1e-12)
    same = all(named.keys() == biases[0].keys() for named in biases)
    if not exact or not same or coefficients is None:
        name = next(name for named in biases for name in named)
        what = "biases that were saved whole (bias='all' or 'lora_only'): their change is not known without the base"
        raise FusionError(what, got=name, where="fuse.adapters", fix=_BASE)
    return {name: _sum([named[name] for named in biases], coefficients, name) for name in biases[0]}


def _mean(modules: Sequence[Tensors], names: Sequence[str], weights: WeightTable) -> dict[str, Tensor]:
    where = "fuse.heads"
    for name, named in zip(names, modules, strict=True):
        if odd := sorted(named.keys() ^ modules[0].keys()):
            what = f"heads are fused by name, but {names[0]} and {name} have different names"
            raise FusionError(what, got=odd[0], where=where, fix="use heads='keep', --heads keep")
    if isinstance(weights, dict):
        fix = "give one weight per adapter, or keep the heads"
        raise FusionError("weights per site give no weights for heads", where=where, fix=fix)
    total = math.fsum(weights)
    if total <= 0 or min(weights) < 0:
        fix = "give positive weights, or keep the heads"
        raise FusionError(
            "heads are averaged by their weights, which must be positive", got=weights, where=where, fix=fix
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


def _all_equal(modules: Sequence[Tensors]) -> bool:
    first = modules[0]
    return all(
        named.keys() == first.keys() and all(torch.equal(named[n], first[n]) for n in first) for named in modules[1:]
    )


def file_name(name: str) -> str:
    """Return the name of a head's file, without its suffix, for an adapter of this name."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "head"
