"""TSV-M: task singular vectors, made orthogonal to each other."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._matrices import as_matrices, mean_of_others, nearest_orthonormal, one_per_task, triplets
from tangora.methods._registry import fusion_method

__all__ = ["tsv_m"]


@fusion_method("tsv_m", granularity="tensor", reference="arXiv:2412.00081", default_weight=1.0)
def tsv_m(deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"]) -> Float[Tensor, "*param"]:
    """The leading singular vectors of every task, turned until tasks no longer overlap.

    From each ``νₜ = Uₜ Σₜ Vₜᵀ`` the first ``⌊k/T⌋`` triplets, k the smaller side; side by side they are
    ``U Σ Vᵀ``; with ``U = P D Qᵀ`` its nearest orthonormal matrix is ``U⊥ = P Qᵀ``, V⊥ likewise, and
    ``ν = U⊥ Σ V⊥ᵀ`` with ``λₜ Σₜ`` in Σ (arXiv:2412.00081, section 4.2 and algorithm 1).

    Choose it for many tasks whose updates share directions: interference is taken out where it arises, between
    singular vectors, and λ = 1 needs no search.

    A task keeps at least one triplet. Singular values that are rounding noise are left out, so that low-rank
    updates bring no arbitrary vectors of a null space. Tensors that are no matrices are averaged.

    Args:
        deltas: the updates νₜ, stacked; one matrix of the model (kernels as ``[out, everything else]``).
        weights: one number per task.

    Raises:
        FusionError: the weights differ within a matrix.

    >>> deltas = torch.stack([torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))])
    >>> tsv_m(deltas, weights=torch.ones(2, 1, 1)).abs().round(decimals=4)
    tensor([[4., 0.],
            [0., 2.]])
    """
    if deltas.ndim < 3:
        return mean_of_others(deltas, weights)
    scales = one_per_task("tsv_m", weights, deltas)
    matrices = as_matrices(deltas)
    share = max(1, min(matrices.shape[1:]) // len(deltas))
    parts = [triplets(matrix) for matrix in matrices]
    left = torch.cat([u[:, :share] for u, _, _ in parts], 1)
    values = torch.cat([s[:share] * scale for (_, s, _), scale in zip(parts, scales, strict=True)])
    right = torch.cat([vh[:share] for _, _, vh in parts])
    merged = (nearest_orthonormal(left) * values) @ nearest_orthonormal(right.T).T
    return merged.reshape(deltas.shape[1:]).to(deltas.dtype)
