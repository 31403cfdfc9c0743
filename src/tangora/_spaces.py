"""The coordinates that a fusion method sees: differences of whole weights, or of factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from tangora.adapter import Adapter
from tangora.task_vector import Dense, LowRank, TaskVector, Update

__all__ = ["Space", "coordinates", "site_of", "updates_from"]

Space = Literal["delta", "factors"]


def coordinates(adapter: Adapter, space: Space) -> TaskVector:
    """``ΔW − s·B₀A₀`` per site, or ``A − A₀`` and ``B − B₀`` as two tensors per site."""
    if space == "delta":
        return adapter.task_vector
    tensors: dict[str, Update] = {}
    for site, update in adapter.updates.items():
        start = (adapter.initial or {})[site]
        assert isinstance(update, LowRank)
        b, a = update.b, update.a
        if _exported(update, start):  # s·[B | B₀] @ [A₀ ; A − A₀]
            b, a = b[:, : start.rank], a[start.rank :] + start.a
        tensors |= {f"{site}.lora_A": Dense(a - start.a), f"{site}.lora_B": Dense(b - start.b)}
    return TaskVector(tensors)


def site_of(name: str, space: Space) -> str:
    """The site of a coordinate tensor."""
    return name if space == "delta" else name.rpartition(".")[0]


def updates_from(fused: TaskVector, space: Space, like: Adapter) -> Mapping[str, Update]:
    """Absolute updates from fused coordinates; φ₀ (and in ``factors`` the scalings) are those of ``like``."""
    if space == "delta":
        return dict(fused + TaskVector(like.start) if like.start else fused)
    updates: dict[str, Update] = {}
    for site, update in like.updates.items():
        start = (like.initial or {})[site]
        assert isinstance(update, LowRank)
        delta_a, delta_b = fused[f"{site}.lora_A"].dense(), fused[f"{site}.lora_B"].dense()
        if _exported(update, start):
            b, a = torch.cat([start.b + delta_b, start.b], 1), torch.cat([start.a, delta_a], 0)
        else:
            b, a = start.b + delta_b, start.a + delta_a
        updates[site] = LowRank(b, a, update.scaling)
    return updates


def _exported(update: LowRank, start: LowRank) -> bool:
    return update.rank == 2 * start.rank
