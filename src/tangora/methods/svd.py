"""The best approximation of a given rank."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tangora._truncation import truncate_matrix
from tangora.methods._limits import Limit
from tangora.methods._matrices import as_matrices
from tangora.methods._registry import fusion_method
from tangora.methods._sums import weighted_sum

__all__ = ["svd"]

RANK = Limit(low=1, fix="give a whole number of at least 1")


@fusion_method("svd", granularity="tensor", reference="arXiv:2212.04089", default_weight=0.3, limits={"rank": RANK})
def svd(
    deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"], rank: int = 16
) -> Float[Tensor, "*param"]:
    """The sum of task arithmetic, cut to a rank by the best approximation.

    ``ν = argmin ‖X − Σₜ λₜ νₜ‖_F`` over matrices X of at most ``rank`` (Eckart and Young), of the sum of
    arXiv:2212.04089.

    Choose it where every layer shall have one small rank, in a full checkpoint too; for adapters
    ``task_arithmetic`` with ``--rank`` gives the same from the factors, much faster, and reports the error.

    A kernel of a convolution is cut as ``[out, everything else]``; vectors and scalars are summed as they are.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update.
        rank: the largest rank of the result.

    Raises:
        FusionError: the rank is smaller than 1.

    >>> import torch
    >>> deltas = torch.stack([torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([2.0, 1.0]))])
    >>> svd(deltas, weights=torch.ones(2, 1, 1), rank=1).abs().round(decimals=4)
    tensor([[6., 0.],
            [0., 0.]])
    """
    RANK.check("svd", "rank", rank)
    total = weighted_sum(deltas, weights)
    if total.ndim < 2:
        return total.to(deltas.dtype)
    matrix = as_matrices(total[None])[0]
    if rank >= min(matrix.shape):
        return total.to(deltas.dtype)
    u, s, vh, _ = truncate_matrix(matrix, rank)
    return ((u * s) @ vh).reshape(total.shape).to(deltas.dtype)
