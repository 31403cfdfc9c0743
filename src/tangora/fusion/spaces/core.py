"""The space ``core``: changes of the weights in bases that all adapters share (arXiv:2509.17786).

Per site, ``Mₜ = Uᵀ ΔWₜ V``; its dimensions are at most the sum of the ranks, and nothing is lost. U has the left
singular vectors of the updates side by side, V the right ones of the updates stacked vertically. The paper uses those
of the stacked factors, which depend on how an update is factored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.adapter import Adapter
from tangora.errors import FusionError
from tangora.fusion.contract import Coordinates
from tangora.fusion.spaces.delta import with_start
from tangora.support.threads import in_threads
from tangora.updates.task_vector import Dense, LowRank, TaskVector, Update

__all__ = ["SPACE"]

Bases: TypeAlias = "Mapping[str, tuple[Tensor, Tensor]]"
"""Site -> orthonormal U ``[out, k]`` and V ``[in, l]``."""

# Squared singular values below this fraction of the largest are float64's rounding, not directions.
_NOISE = 1e-13


class _CoreSpace:
    summary = "changes of the weights, in small bases that all adapters share"
    needs_factors = True
    needs_start = False
    plain = False
    intrinsic = True

    def check(self, adapters: Sequence[Adapter], names: Sequence[str]) -> None:
        """Refuse updates that are not low-rank: their bases would be as large as the weight."""
        for name, adapter in zip(names, adapters, strict=True):
            for site, update in adapter.task_vector.items():
                if update.factors() is None:
                    what = f"space 'core' needs low-rank updates, {name} has a dense one"
                    raise FusionError(what, where=site, fix="use space='delta', which does not need it")

    def coordinates(self, adapters: Sequence[Adapter]) -> Coordinates:
        """Return the cores; each depends on all adapters."""
        like = adapters[0]
        vectors, bases = _cores([adapter.task_vector for adapter in adapters])

        def back(fused: TaskVector) -> Mapping[str, Update]:
            return with_start(_from_cores(fused, bases, like.task_vector), like)

        return Coordinates(vectors, back, separate=False)

    def is_linear(self, adapters: Sequence[Adapter]) -> bool:
        """Return True: the adapters share the bases, which span every change."""
        return True


def _cores(vectors: Sequence[TaskVector]) -> tuple[list[TaskVector], Bases]:
    """Return ``Mₜ = Uᵀ ΔWₜ V`` per task and site, and the bases."""
    sites = list(dict.fromkeys(site for vector in vectors for site in vector))

    def one(site: str) -> tuple[list[Tensor | None], tuple[Tensor, Tensor]]:
        present = [vector.get(site) for vector in vectors]
        factors = [f for u in present if u is not None and (f := u.factors()) is not None]
        pairs = [(f.b.double() * f.scaling, f.a.double()) for f in factors]
        left = _basis([(b, a @ a.T) for b, a in pairs])
        right = _basis([(a.T, b.T @ b) for b, a in pairs])
        cores = iter([(left.T @ b) @ (a @ right) for b, a in pairs])
        return [next(cores) if u is not None else None for u in present], (left, right)

    by_site = dict(zip(sites, in_threads(one, sites), strict=True))
    each: list[dict[str, Update]] = [{} for _ in vectors]
    for site, (cores, _) in by_site.items():
        for vector, core in zip(each, cores, strict=True):
            vector |= {site: Dense(core)} if core is not None else {}
    return [TaskVector(vector) for vector in each], {site: bases for site, (_, bases) in by_site.items()}


def _basis(parts: Sequence[tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]]) -> Float[Tensor, "n k"]:
    """Return eigenvectors of ``Σ fₜ gₜ fₜᵀ`` without noise, by a QR of the f, without an ``n x n`` matrix."""
    q, r = torch.linalg.qr(torch.cat([f for f, _ in parts], 1))
    values, vectors = torch.linalg.eigh(r @ torch.block_diag(*(g for _, g in parts)) @ r.T)
    chosen = values > _NOISE * values[-1].clamp(min=0)
    if not bool(chosen.any()):
        chosen[-1] = True  # all zero: keep one direction, so that no tensor is empty
    basis: Tensor = q @ vectors[:, chosen].flip(1)
    return basis


def _from_cores(fused: TaskVector, bases: Bases, like: TaskVector) -> TaskVector:
    """Return ``U M Vᵀ`` as factors ``U M`` and ``Vᵀ``, in the dtype of ``like``."""
    updates: dict[str, Update] = {}
    for site, (left, right) in bases.items():
        if site not in fused:
            continue
        factors = like.get(site, next(iter(like.values()))).factors()
        assert factors is not None  # checked by `check`
        dtype = factors.a.dtype
        updates[site] = LowRank((left @ fused[site].dense()).to(dtype), right.T.to(dtype).contiguous())
    return TaskVector(updates)


SPACE = _CoreSpace()
