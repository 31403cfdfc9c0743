"""Iso-C: the directions of the sum, all with the same strength."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tangora.methods._registry import fusion_method
from tangora.methods._spectral import as_matrices, decompose, mean_of
from tangora.methods._sums import weighted_sum

__all__ = ["iso_c"]


@fusion_method(
    "iso_c",
    granularity="tensor",
    reference="arXiv:2502.04959",
    default_weight=1.0,
    additive=False,
    exact=False,
    rotates_outputs=True,
    identity=False,  # singular values become equal
)
def iso_c(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """The weighted sum of the updates with every singular value replaced by their mean.

    ``Σₜ λₜ νₜ = U Σ Vᵀ``, ``σ̄ = (1/r) Σᵢ σᵢ``, ``ν = σ̄ U Vᵀ`` (arXiv:2502.04959, Iso-C; there with one λ after the
    decomposition, which is the same).

    Choose it for many tasks of full fine-tuning where the sum is ruled by a few directions that most tasks share:
    it lifts those of single tasks. It changes also a single update, so compare it with its expert.

    r is the numerical rank: the reference counts all ``min(out, in)`` singular values, and for low-rank updates gives
    the strength of the others to arbitrary directions, which rounding chose; for matrices of full rank the
    two are equal. A convolution's kernel is taken as ``[out, the rest]``, which the reference averages; vectors and
    numbers are averaged, as there.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update; they multiply before the decomposition.

    >>> import torch
    >>> deltas = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]])
    >>> iso_c(deltas, weights=torch.ones(2, 1, 1)).round(decimals=4)
    tensor([[3., 0.],
            [0., 3.]])
    """
    total = weighted_sum(deltas, weights)
    matrices = as_matrices(total[None])
    if matrices is None:
        return mean_of(deltas, weights).to(deltas.dtype)
    u, s, vh = decompose(matrices[0])
    level = s.sum() / max(1, len(s))
    return ((u @ vh) * level).reshape(total.shape).to(deltas.dtype)
