"""A step: output directions that many tasks share count less, so that they do not add up."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit, check_value
from tangora.methods._spectral import as_matrices, decompose
from tangora.methods._steps import Change, fusion_step

__all__ = ["pico"]

STRENGTH = Limit(low=0, fix="1 divides by the number of tasks that share a direction, 0 changes nothing")


@fusion_step("pico", reference="arXiv:2604.16826", symmetric=False, limits={"strength": STRENGTH})
def pico(deltas: Float[Tensor, " tasks *param"], *, strength: float = 1.0) -> Change:
    """Weaken the output directions that several tasks share, before a method fuses the updates (Pico).

    Pₜ is the projection on the outputs of task t, the columns of Bₜ. ``C = Σₜ Pₜ = Q diag(c) Qᵀ`` counts, for every
    direction, the tasks that have it. ``ν̂ₜ = D νₜ`` with ``D = Q diag(max(1, c)^−α) Qᵀ``, then any method, and the
    result is multiplied by ``(Σₜ ‖νₜ‖² / Σₜ ‖ν̂ₜ‖²)^½``; alone, ``Σₜ λₜ ν̂ₜ`` (arXiv:2604.16826, Pico: interference sits
    in output directions that the Bₜ share too much; they are weakened before merging, and the scale restored after).

    Choose it before `task_arithmetic`, `ties_per_tensor` or `tsv_m` for LoRA adapters, above all those with one A for
    all tasks, which differ in B alone: ``pico+tsv_m``.

    The paper's measure of sharing and its exponent could not be confirmed. This one depends on the changes of weights
    only, and is continuous where directions are nearly shared. With α = 1, a direction of k tasks counts as their mean
    and one of a single task as itself. It is meant for low-rank updates: where all have full rank, every direction is
    shared by all tasks, and nothing changes. Output directions that are zero up to rounding do not count. A
    convolution's kernel is used as ``[out, the rest]``; vectors and numbers are left as they are. The cost is one
    decomposition per task and one of their outputs together, about that of `tsv_m`.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        strength: α; 0 changes nothing.

    Raises:
        ArgumentError: the strength is negative.

    >>> deltas = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 0.0]]])
    >>> pico(deltas, weights=torch.ones(2, 1, 1)).round(decimals=4)
    tensor([[2.8284, 0.0000],
            [0.0000, 2.8284]])
    """
    check_value("pico", "strength", strength, 1.0, STRENGTH)
    matrices = as_matrices(deltas)
    if matrices is None:
        return Change(deltas)
    directions, roots, _ = decompose(torch.cat([decompose(matrix)[0] for matrix in matrices], 1))
    lowered = 1 - roots.square().clamp(min=1) ** -strength
    changed = torch.stack([m - (directions * lowered) @ (directions.T @ m) for m in matrices])
    before, after = (torch.linalg.vector_norm(stack, dtype=torch.float64) for stack in (matrices, changed))
    scale = (before / after).to(deltas.dtype) if bool(after > 0) else 1.0
    return Change(changed.reshape(deltas.shape), back=lambda fused: fused * scale)
