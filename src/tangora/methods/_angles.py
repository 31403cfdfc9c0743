"""Inner products between the updates of one tensor."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["gram"]

_BLOCK = 2**20  # entries of a task that are in float64 at a time


def gram(deltas: Float[Tensor, " tasks *param"]) -> Float[Tensor, "tasks tasks"]:
    """Return ``⟨νₛ, νₜ⟩`` for every pair, accumulated in float64."""
    rows = deltas.detach().reshape(len(deltas), -1)
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(_BLOCK, dim=1):
        wide = block.double()
        total += wide @ wide.T
    return total
