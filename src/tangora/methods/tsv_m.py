"""TSV-M: the leading singular vectors of every task, made orthogonal to each other."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._registry import fusion_method
from tangora.methods._spectral import as_matrices, decompose, mean_of, orthogonalized
from tangora.methods._sums import weighted_sum

__all__ = ["tsv_m"]


@fusion_method(
    "tsv_m",
    granularity="tensor",
    exact=False,
    rotates_outputs=True,
    reference="arXiv:2412.00081",
    default_weight=1.0,
    copies=(6, 10),
)
def tsv_m(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """The sum of the updates' leading parts after their singular vectors were made orthogonal between tasks.

    With ``νₜ = Uₜ Σₜ Vₜᵀ`` cut to its ``k = ⌊min(out, in) / T⌋`` largest singular values, ``U = [U₁ … U_T]`` and V
    likewise, and ``U⊥ = PQᵀ`` of the SVD ``U = PDQᵀ``, the orthonormal matrix nearest to U:
    ``ν = U⊥ diag(λ₁Σ₁, …, λ_TΣ_T) V⊥ᵀ`` (arXiv:2412.00081, TSV-Merge; there with one λ, and
    1 as its recommended value).

    Choose it for full fine-tuning of several tasks, whose matrices are close to low rank: each task gets its own share
    of directions, and no λ has to be found.

    The weights multiply the singular values, so that they do not change the directions. Singular values that are zero
    up to rounding and their vectors are left out: for low-rank updates the reference orthogonalizes against
    arbitrary directions. In the space ``core``, out and in are the sizes of the cores: adapters with one A for all
    tasks have few directions there to share out, so use ``delta`` for them. If there are more tasks than
    ``min(out, in)``, one vector each is kept; the reference keeps none. A convolution's kernel is used as
    ``[out, the rest]``; the reference averages kernels. Vectors and numbers are averaged, as there.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.

    >>> same = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    >>> other = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    >>> tsv_m(torch.stack([same, other]), weights=torch.ones(2, 1, 1)).round(decimals=4)
    tensor([[4., 0.],
            [0., 2.]])
    """
    matrices = as_matrices(deltas)
    if matrices is None:
        return mean_of(deltas, weights).to(deltas.dtype)
    share = max(1, min(matrices.shape[1:]) // len(matrices))
    parts = [(u[:, :share], s[:share], vh[:share]) for u, s, vh in map(decompose, matrices)]
    sizes = [len(s) for _, s, _ in parts]
    left = orthogonalized(torch.cat([u for u, _, _ in parts], 1)).split(sizes, 1)
    right = orthogonalized(torch.cat([vh.T for _, _, vh in parts], 1)).split(sizes, 1)
    terms = [(u * s) @ v.T for u, (_, s, _), v in zip(left, parts, right, strict=True)]
    return weighted_sum((term.reshape(deltas.shape[1:]) for term in terms), weights).to(deltas.dtype)
