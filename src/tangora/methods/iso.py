"""Isotropic merging: every direction of the merged update gets the same strength."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit
from tangora.methods._matrices import as_matrices, mean_of_others, nearest_orthonormal, one_per_task, triplets
from tangora.methods._registry import fusion_method

__all__ = ["iso_c", "iso_cts"]

COMMON = Limit(low=0, high=1, open_low=True, fix="give the share of directions that are common, such as 0.8")


@fusion_method("iso_c", granularity="tensor", reference="arXiv:2502.04959", default_weight=1.0)
def iso_c(deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"]) -> Float[Tensor, "*param"]:
    """The sum of the updates with all its singular values replaced by their mean.

    ``Σₜ λₜ νₜ = U Σ Vᵀ``, ``ν = σ̄ U Vᵀ`` with σ̄ the mean singular value (arXiv:2502.04959, section 4.1).

    Choose it when a few strong tasks drown the others: directions that only one task uses count as much as those
    that all share.

    The mean and the directions are those of singular values above rounding noise: of a low-rank sum, its rank and
    not the whole width, whose null space has no directions to speak of. Tensors that are no matrices are averaged.

    Args:
        deltas: the updates νₜ, stacked; one matrix of the model (kernels as ``[out, everything else]``).
        weights: one number per task.

    Raises:
        FusionError: the weights differ within a matrix.

    >>> deltas = torch.stack([torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))])
    >>> iso_c(deltas, weights=torch.ones(2, 1, 1)).abs().round(decimals=4)
    tensor([[3., 0.],
            [0., 3.]])
    """
    if deltas.ndim < 3:
        return mean_of_others(deltas, weights)
    total = _total(as_matrices(deltas), one_per_task("iso_c", weights, deltas))
    u, s, vh = triplets(total)
    merged = (u @ vh) * s.mean() if len(s) else total
    return merged.reshape(deltas.shape[1:]).to(deltas.dtype)


@fusion_method(
    "iso_cts",
    granularity="tensor",
    reference="arXiv:2502.04959",
    default_weight=1.0,
    limits={"common": COMMON},
)
def iso_cts(
    deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"], common: float = 0.8
) -> Float[Tensor, "*param"]:
    """Isotropic merging whose weakest common directions make room for what single tasks have of their own.

    Of ``Σₜ λₜ νₜ = U Σ Vᵀ`` with r singular values, the first ``k = round(common·r)`` triplets stay; each task adds
    the first ``⌊(r − k)/T⌋`` triplets of ``λₜ (νₜ − U_k U_kᵀ νₜ)``. Both bases are made orthonormal as in `tsv_m`, and
    ``ν = σ̄ U⊥ V⊥ᵀ`` with σ̄ the mean of the singular values that were gathered (arXiv:2502.04959, section 4.2).

    Choose it over `iso_c` when there are many tasks: fewer of them fall between the common directions.

    Singular values that are rounding noise do not count; with ``common = 1`` it is `iso_c`. Tensors that are no
    matrices are averaged.

    Args:
        deltas: the updates νₜ, stacked; one matrix of the model (kernels as ``[out, everything else]``).
        weights: one number per task.
        common: the share of directions that are taken from the sum, in (0, 1].

    Raises:
        FusionError: the share is out of range, or the weights differ within a matrix.

    >>> deltas = torch.stack([torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))])
    >>> iso_cts(deltas, weights=torch.ones(2, 1, 1), common=1.0).abs().round(decimals=4)
    tensor([[3., 0.],
            [0., 3.]])
    """
    COMMON.check("iso_cts", "common", common)
    if deltas.ndim < 3:
        return mean_of_others(deltas, weights)
    matrices, scales = as_matrices(deltas), one_per_task("iso_cts", weights, deltas)
    total = _total(matrices, scales)
    u, s, vh = triplets(total)
    if not len(s):
        return total.reshape(deltas.shape[1:]).to(deltas.dtype)
    kept = max(1, round(common * len(s)))
    u, s, vh, own = u[:, :kept], s[:kept], vh[:kept], (len(s) - kept) // len(deltas)
    parts = [(u, s, vh)]
    for matrix, scale in zip(matrices, scales, strict=True):
        task_u, task_s, task_vh = triplets(scale * (matrix - u @ (u.T @ matrix)))
        parts.append((task_u[:, :own], task_s[:own], task_vh[:own]))
    left = nearest_orthonormal(torch.cat([part[0] for part in parts], 1))
    right = nearest_orthonormal(torch.cat([part[2] for part in parts]).T)
    merged = (left @ right.T) * torch.cat([part[1] for part in parts]).mean()
    return merged.reshape(deltas.shape[1:]).to(deltas.dtype)


def _total(matrices: Float[Tensor, "tasks out in"], scales: Float[Tensor, "tasks"]) -> Float[Tensor, "out in"]:
    return torch.einsum("t,toi->oi", scales, matrices)
