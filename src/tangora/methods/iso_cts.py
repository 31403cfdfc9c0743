"""Iso-CTS: directions common to the tasks and directions of each, all with the same strength."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._spectral import as_matrices, decompose, mean_of, orthogonalized
from tangora.methods._sums import weighted_sum, widened

__all__ = ["iso_cts"]

COMMON = Limit(low=0, high=1, fix="give the fraction of directions that are common, such as 0.8")


@fusion_method(
    "iso_cts",
    granularity="tensor",
    exact=False,
    symmetric=False,  # it begins with the output directions
    identity=False,  # singular values become equal
    reference="arXiv:2502.04959",
    default_weight=1.0,
    copies=(6, 10),
    limits={"common": COMMON},
    additive=False,
)
def iso_cts(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], common: float = 0.8
) -> Float[Tensor, "*param"]:
    """The leading directions of the weighted sum and the leading rest of each task, all equally strong.

    With ``Σₜ λₜ νₜ = U Σ Vᵀ`` of rank r: the s leading triplets are common; ``ν̄ₜ = λₜνₜ − UₛUₛᵀ λₜνₜ`` is what they
    leave of task t, and its ``(r − s)/T`` leading triplets are its own. All of them side by side, their left and right
    vectors made orthonormal (``U⊥ = PQᵀ`` of the SVD ``PDQᵀ``), get the mean σ̄ of their singular values:
    ``ν = σ̄ U⊥ V⊥ᵀ`` (arXiv:2502.04959, Iso-CTS).

    Choose it over `iso_c` when the tasks are many: directions that only one of them has take the places of
    the sum's weakest.

    s is ``common · r``, raised so that the rest divides by T. As in `iso_c` r is the numerical rank, and triplets that
    are zero up to rounding are left out, where the reference goes by ``min(out, in)``; for matrices of full rank the
    two are equal. Convolutions, vectors and numbers are treated as in `iso_c`.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update; they multiply before the decompositions.
        common: the fraction of directions taken from the sum, in [0, 1]; 1 is `iso_c`.

    Raises:
        ArgumentError: the fraction is not in [0, 1].

    >>> deltas = torch.stack([torch.diag(torch.tensor(d)) for d in ([4.0, 2.0, 0.0], [4.0, 0.0, 1.0])])
    >>> iso_cts(deltas, weights=torch.ones(2, 1, 1), common=0.4).diag().round(decimals=4)
    tensor([3.6667, 3.6667, 3.6667])
    """
    check_value("iso_cts", "common", common, 0.8, COMMON)
    matrices = as_matrices(deltas)
    if matrices is None:
        return mean_of(deltas, weights).to(deltas.dtype)
    scaled = [(widened(d) * weights[t].to(matrices.dtype)).reshape(matrices.shape[1:]) for t, d in enumerate(deltas)]
    u, s, vh = decompose(weighted_sum(deltas, weights).reshape(matrices.shape[1:]))
    own = _own(len(s), len(scaled), common)
    shared = len(s) - own * len(scaled)
    basis = u[:, :shared]
    parts = [decompose(matrix - basis @ (basis.T @ matrix)) for matrix in scaled] if own else []
    strengths = torch.cat([*(p[1][:own] for p in parts), s[:shared]])
    left = orthogonalized(torch.cat([*(p[0][:, :own] for p in parts), basis], 1))
    right = orthogonalized(torch.cat([*(p[2][:own].T for p in parts), vh[:shared].T], 1))
    level = strengths.sum() / max(1, len(strengths))
    return ((left @ right.T) * level).reshape(deltas.shape[1:]).to(deltas.dtype)


def _own(rank: int, tasks: int, common: float) -> int:
    """Return the number of directions per task: those that are not common, divided by the tasks and rounded."""
    return min(round((rank - int(rank * common)) / tasks), rank // tasks)
