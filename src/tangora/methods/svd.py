"""The best low-rank approximation of the weighted sum."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._spectral import as_matrices, decompose
from tangora.methods._sums import weighted_sum

__all__ = ["svd"]

COMPONENTS = Limit(low=1, fix="keep at least one singular value")


@fusion_method(
    "svd",
    granularity="tensor",
    exact=False,
    neutral={"components": 2**31},
    reference="doi:10.1007/BF02288367",
    default_weight=0.3,
    limits={"components": COMPONENTS},
    additive=False,
)
def svd(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], components: int = 16
) -> Float[Tensor, "*param"]:
    """The matrix of a given rank that is nearest to the weighted sum of the updates.

    ``ν = Σ_{i ≤ R} σᵢ uᵢ vᵢᵀ`` of the singular value decomposition of ``Σₜ λₜ νₜ``: the best approximation of rank R
    in the Frobenius norm (Eckart and Young 1936, doi:10.1007/BF02288367).

    Choose it when the fused adapter must have a given rank and nothing but the sum is wanted; `fuse(..., rank=R)`
    cuts the result of any method the same way, and also reports the error.

    R is called ``components``, since `fuse` has its own ``rank``. peft's ``svd`` also sums s·BA of all adapters and
    truncates the sum; it needs the dense matrix. A convolution's kernel is used as ``[out, the rest]``; vectors and
    numbers are summed.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update; they multiply before the decomposition.
        components: R, the number of singular values that are kept.

    Raises:
        ArgumentError: components is smaller than 1.

    >>> import torch
    >>> deltas = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    >>> svd(deltas, weights=torch.ones(2, 1, 1), components=1).round(decimals=4)
    tensor([[4., 0.],
            [0., 0.]])
    """
    check_value("svd", "components", components, 16, COMPONENTS)
    total = weighted_sum(deltas, weights)
    matrices = as_matrices(total[None])
    if matrices is None or components >= min(matrices.shape[1:]):
        return total.to(deltas.dtype)
    u, s, vh = decompose(matrices[0])
    best = (u[:, :components] * s[:components]) @ vh[:components]
    return best.reshape(total.shape).to(deltas.dtype)
