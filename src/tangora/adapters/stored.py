"""Prepare an adapter's numbers for its file: one rank and one alpha at all sites, or a smaller dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tangora.adapters.adapter import Adapter
from tangora.adapters.formats.lora.layers import expert_of
from tangora.adapters.formats.lora.writing import alpha_of, content_of
from tangora.errors import AdapterError, ArgumentError
from tangora.updates.task_vector import Dense, Factors, LowRank, Update

__all__ = ["DTYPES", "dtype_of", "filled", "rounded", "with_one_rank"]

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
"""The dtypes of an adapter's file."""


def dtype_of(name: str) -> torch.dtype:
    """Return a dtype by its name.

    Raises:
        ArgumentError: it is no dtype of an adapter's file.
    """
    if name not in DTYPES:
        raise ArgumentError("no dtype of an adapter", got=name, where="--dtype", fix=f"give one of {', '.join(DTYPES)}")
    return DTYPES[name]


def with_one_rank(adapter: Adapter) -> Adapter:
    """Return the same updates with one rank and one alpha at all sites, which readers without patterns need.

    Factors are filled up with zeros to the largest rank. If the scalings differ, each is multiplied into its B, which
    rounds once.

    Raises:
        ArgumentError: the adapter is of kind ``full``, which has no factors.

    >>> one = Adapter({
    ...     "up": LowRank(torch.ones(2, 1), torch.ones(1, 3), 0.5),
    ...     "at": LowRank(torch.ones(2, 4), torch.ones(4, 2)),
    ... })
    >>> {site: (update.rank, update.scaling) for site, update in with_one_rank(one).updates.items()}
    {'up': (4, 1.0), 'at': (4, 1.0)}
    """
    _refuse_full(adapter, "--uniform")
    content = content_of(adapter)
    if not content.updates:
        return adapter
    rank = max(update.rank for update in content.updates.values())
    scalings = {update.scaling for update in content.updates.values()}
    experts = any(expert_of(site) for site in content.updates)
    scaling = scalings.pop() if len(scalings) == 1 and not experts else 1.0  # experts are written with scaling 1
    updates: dict[str, Update] = {site: filled(u, rank, scaling) for site, u in content.updates.items()}
    some = updates[next(iter(content.updates))].factors()
    assert some is not None
    config = {**(adapter.config or {}), "r": rank, "lora_alpha": alpha_of(some), "use_rslora": False}
    config |= {"rank_pattern": {}, "alpha_pattern": {}}
    biases = {site: update for site, update in adapter.updates.items() if site not in updates}
    return _changed(adapter, {**updates, **biases}).with_details(config=config if adapter.config else None)


def filled(update: Factors, rank: int, scaling: float) -> LowRank:
    """Return the same update with zeros up to a rank, and with another scaling; the ratio is multiplied into B."""
    more, b = rank - update.rank, update.b
    if update.scaling != scaling:
        b = (b.double() * (update.scaling / scaling)).to(b.dtype)
    b = torch.cat([b, b.new_zeros(b.shape[0], more)], 1)
    return LowRank(b, torch.cat([update.a, update.a.new_zeros(more, update.a.shape[1])]), scaling)


def rounded(adapter: Adapter, dtype: torch.dtype) -> tuple[Adapter, dict[str, float]]:
    """Round an adapter's tensors to a dtype, in which it is then written.

    Returns:
        the adapter, and the relative error (Frobenius) of every update and every parameter that is saved whole.

    Raises:
        ArgumentError: the adapter is of kind ``full``.
        AdapterError: a number is too large for the dtype.
    """
    _refuse_full(adapter, "--dtype")
    content, errors = content_of(adapter), dict[str, float]()
    updates: dict[str, Update] = {}
    for site, update in content.updates.items():
        of_expert = expert_of(site) is not None  # written with its scaling in B
        b = update.b.double() * update.scaling if of_expert else update.b
        scaling = 1.0 if of_expert else update.scaling
        kept = LowRank(_round(b, dtype, site), _round(update.a, dtype, site), scaling)
        updates[site], errors[site] = kept, _error(b, update.a, kept)
    for site, bias in content.biases.items():
        scaling = content.updates[site].scaling if site in content.updates else 1.0
        short = _round(bias.double() / scaling, dtype, f"{site}.bias").double() * scaling
        updates[f"{site}.bias"], errors[f"{site}.bias"] = Dense(short.float()), _relative(bias, short)
    whole = {name: _round(value, dtype, name) for name, value in adapter.whole.items()}
    errors |= {name: _relative(adapter.whole[name], value) for name, value in whole.items()}
    return replace(_changed(adapter, updates), whole=whole).with_details(dtype=dtype), errors


def _round(tensor: Tensor, dtype: torch.dtype, site: str) -> Tensor:
    short = tensor.detach().to(dtype).float()
    if not bool(short.isfinite().all()):
        fix = "write it in bfloat16 or float32"
        raise AdapterError(f"a number is too large for {str(dtype).removeprefix('torch.')}", where=site, fix=fix)
    return short


def _error(b: Tensor, a: Tensor, kept: LowRank) -> float:
    """Return ``‖BA − B'A'‖ / ‖BA‖`` as ``(B − B')A + B'(A − A')``, in which nothing cancels."""
    wide, b, a = kept.a.double(), b.double(), a.double()
    difference = LowRank(torch.cat([b - kept.b, kept.b.double()], 1), torch.cat([a, a - wide]))
    size, norm = difference.norm(), LowRank(b, a).norm()
    return size / norm if norm > 0 else size


def _relative(value: Tensor, short: Tensor) -> float:
    norm = float(value.double().norm())
    return float((value.double() - short.double()).norm()) / norm if norm > 0 else 0.0


def _changed(adapter: Adapter, updates: Mapping[str, Update]) -> Adapter:
    """Return the adapter with other factors, which cannot be compared with φ₀ unless it is a function of its own."""
    changed = replace(adapter, updates=dict(updates))
    if adapter.start:
        return changed
    return replace(changed, metadata=changed.metadata.model_copy(update={"initial": None})).with_details(initial=None)


def _refuse_full(adapter: Adapter, where: str) -> None:
    if not adapter.metadata.of_kind.has_factors:
        fix = "leave it out: the changes of all weights have no factors"
        raise ArgumentError("this is for low-rank adapters", got=adapter.metadata.kind, where=where, fix=fix)
