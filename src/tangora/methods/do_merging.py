"""DO-Merging: magnitudes are averaged, directions are made orthogonal between tasks and added."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._registry import fusion_method
from tangora.methods._spectral import as_matrices, mean_of
from tangora.methods._sums import weighted_sum

__all__ = ["do_merging"]


@fusion_method(
    "do_merging",
    granularity="tensor",
    exact=False,
    symmetric=False,  # magnitudes are those of rows, one per output
    reference="arXiv:2505.15875",
    default_weight=1.0,
    copies=(4, 8),
)
def do_merging(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """The mean magnitude of every output's row, along the tasks' directions made orthogonal to each other.

    Row i of an update is ``νₜ[i] = mₜ dₜ`` with ``mₜ = ‖νₜ[i]‖`` and ``‖dₜ‖ = 1``. The directions ``d⊥ₜ`` are the
    orthonormal vectors nearest to the dₜ together, ``D⊥ = (DDᵀ)^(−1/2) D`` for D with the rows dₜ. With K tasks whose
    row is not zero, ``ν[i] = (1/K) Σₜ mₜ · (1/√K) Σₜ λₜ d⊥ₜ``: for λ = 1 its norm is the mean of the tasks'
    (arXiv:2505.15875, DO-Merging: magnitude and direction decoupled, directions orthogonal, without data).

    Choose it when the adapters differ in strength, as those of tasks with unlike losses or learning rates do: in a sum
    the strong ones decide the directions, here every task has the same say in each of them, and no λ has to be found.

    The reference finds directions by gradient descent under a constraint of orthogonality; this is the closed form of
    the nearest ones, in the span of the given ones. That its magnitudes are one per row could not be confirmed. If
    directions of a row are dependent (equal or opposite tasks), ``D⊥`` is the nearest partial isometry: equal updates
    give that update, opposite ones cancel. Rows of low-rank updates are only mixed and scaled, so the rank is at
    most the sum of the ranks. The cost is T² products of rows and an eigendecomposition of T x T for every row. A
    convolution's kernel is used as ``[out, the rest]``; vectors and numbers are averaged.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update; they multiply the directions.

    >>> deltas = torch.tensor([[[6.0, 0.0]], [[0.0, 2.0]]])
    >>> do_merging(deltas, weights=torch.ones(2, 1, 1)).round(decimals=4)
    tensor([[2.8284, 2.8284]])
    """
    matrices = as_matrices(deltas)
    if matrices is None:
        return mean_of(deltas, weights).to(deltas.dtype)
    magnitudes = torch.linalg.vector_norm(matrices, dim=2, dtype=torch.float64)
    directions = matrices.transpose(0, 1) / magnitudes.T[..., None].clamp(min=1e-300)
    mixing = _inverse_root(directions @ directions.mT, matrices)
    present = (magnitudes > 0).sum(0).clamp(min=1).double()
    level = magnitudes.sum(0) / present**1.5
    terms = (
        (level[:, None] * (mixing[:, t, None] @ directions)[:, 0]).to(matrices.dtype).reshape(deltas.shape[1:])
        for t in range(len(deltas))
    )
    return weighted_sum(terms, weights).to(deltas.dtype)


def _inverse_root(grams: Float[Tensor, "out tasks tasks"], like: Tensor) -> Float[Tensor, "out tasks tasks"]:
    """Return the inverse square roots of Gram matrices of unit vectors, on the spaces where they are not zero.

    Eigenvalues are squares: those below ``(in · eps)²``, eps of the updates' dtype, are the rounding of dependent rows.
    """
    values, vectors = torch.linalg.eigh(grams)
    least = max((like.shape[2] * torch.finfo(like.dtype).eps) ** 2, 1e-12)
    roots = torch.where(values > least, values.clamp(min=least).rsqrt(), 0.0)
    inverse: Tensor = (vectors * roots[:, None]) @ vectors.mT
    return inverse
