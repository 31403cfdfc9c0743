"""The coordinates that a fusion method sees: differences of whole weights, of factors, or cores in common bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tangora.adapters.adapter import Adapter
from tangora.config.settings import Space
from tangora.support.threads import in_threads
from tangora.updates.task_vector import Dense, Factors, LowRank, TaskVector, Update

__all__ = ["Bases", "Space", "coordinates", "cores", "from_cores", "site_of", "updates_from"]

Bases: TypeAlias = "Mapping[str, tuple[Tensor, Tensor]]"
"""Site -> orthonormal U ``[out, k]`` and V ``[in, l]``."""


def coordinates(adapter: Adapter, space: Space) -> TaskVector:
    """``ΔW − s·B₀A₀`` per site (of which `cores` makes those of ``core``), or ``A − A₀`` and ``B − B₀``."""
    if space != "factors":
        return adapter.task_vector
    tensors: dict[str, Update] = {}
    for site, update in adapter.updates.items():
        start, factors = (adapter.initial or {})[site], update.factors()
        assert factors is not None  # as was checked
        b, a = factors.b, factors.a
        if _exported(factors, start):  # s·[B | B₀] @ [A₀ ; A − A₀]
            b, a = b[:, : start.rank], a[start.rank :] + start.a
        tensors |= {f"{site}.lora_A": Dense(a - start.a), f"{site}.lora_B": Dense(b - start.b)}
    return TaskVector(tensors)


def cores(vectors: Sequence[TaskVector]) -> tuple[list[TaskVector], Bases]:
    """``Mₜ = Uᵀ ΔWₜ V`` per site in bases that all tasks share, whose sides are no longer than the ranks' sum.

    Nothing is lost (arXiv:2509.17786). U and V are the left and right singular vectors of the updates side by side,
    and one above the other; the paper takes those of the stacked factors, which depend on how an update is factored.
    """
    sites = list(dict.fromkeys(site for vector in vectors for site in vector))

    def one(site: str) -> tuple[list[Tensor | None], tuple[Tensor, Tensor]]:
        present = [vector.get(site) for vector in vectors]
        factors = [f for u in present if u is not None and (f := u.factors()) is not None]
        pairs = [(f.b.double() * f.scaling, f.a.double()) for f in factors]
        left = _basis([(b, a @ a.T) for b, a in pairs])
        right = _basis([(a.T, b.T @ b) for b, a in pairs])
        made = iter([(left.T @ b) @ (a @ right) for b, a in pairs])
        return [next(made) if u is not None else None for u in present], (left, right)

    found = dict(zip(sites, in_threads(one, sites), strict=True))
    each: list[dict[str, Update]] = [{} for _ in vectors]
    for site, (matrices, _) in found.items():
        for mine, matrix in zip(each, matrices, strict=True):
            mine |= {site: Dense(matrix)} if matrix is not None else {}
    return [TaskVector(mine) for mine in each], {site: bases for site, (_, bases) in found.items()}


def from_cores(fused: TaskVector, bases: Bases, like: TaskVector) -> TaskVector:
    """``U M Vᵀ`` as factors ``U M`` and ``Vᵀ``, in the dtype of ``like``; never the whole matrix."""
    updates: dict[str, Update] = {}
    for site, (left, right) in bases.items():
        own = like.get(site, next(iter(like.values()))).factors()
        assert own is not None  # as was checked
        dtype = own.a.dtype
        updates[site] = LowRank((left @ fused[site].dense()).to(dtype), right.T.to(dtype).contiguous())
    return TaskVector(updates)


def _basis(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Eigenvectors of ``Σ fₜ gₜ fₜᵀ`` that are not noise, from tall f ``[n, r]`` and small g ``[r, r]``."""
    q, r = torch.linalg.qr(torch.cat([f for f, _ in parts], 1))
    values, vectors = torch.linalg.eigh(r @ torch.block_diag(*(g for _, g in parts)) @ r.T)
    chosen = values > 1e-13 * values[-1].clamp(min=0)
    if not bool(chosen.any()):
        chosen[-1] = True  # all zero: one direction, so that no tensor is empty
    basis: Tensor = q @ vectors[:, chosen].flip(1)
    return basis


def site_of(name: str, space: Space) -> str:
    """The site of a coordinate tensor."""
    return name.rpartition(".")[0] if space == "factors" else name


def updates_from(fused: TaskVector, space: Space, like: Adapter) -> Mapping[str, Update]:
    """Absolute updates from fused coordinates; φ₀ (and in ``factors`` the scalings) are those of ``like``."""
    if space != "factors":
        return dict(fused + TaskVector(like.start) if like.start else fused)
    updates: dict[str, Update] = {}
    for site, update in like.updates.items():
        start, factors = (like.initial or {})[site], update.factors()
        assert factors is not None  # as was checked
        delta_a, delta_b = fused[f"{site}.lora_A"].dense(), fused[f"{site}.lora_B"].dense()
        if _exported(factors, start):
            b, a = torch.cat([start.b + delta_b, start.b], 1), torch.cat([start.a, delta_a], 0)
        else:
            b, a = start.b + delta_b, start.a + delta_a
        updates[site] = LowRank(b, a, factors.scaling)
    return updates


def _exported(update: Factors, start: LowRank) -> bool:
    return update.rank == 2 * start.rank
