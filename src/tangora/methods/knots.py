"""KnOTS: TIES in a basis that all tasks share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import DENSITY, check_density
from tangora.methods._matrices import as_matrices, mean_of_others, one_per_task, triplets
from tangora.methods._registry import fusion_method
from tangora.methods.ties import ties_per_tensor

__all__ = ["knots"]


@fusion_method(
    "knots", granularity="tensor", reference="arXiv:2410.19735", default_weight=1.0, limits={"density": DENSITY}
)
def knots(
    deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"], density: float = 0.2
) -> Float[Tensor, "*param"]:
    """TIES on the coordinates of the updates in one common basis, found by an SVD of all of them side by side.

    ``[ν₁ | … | ν_T] = U Σ [V₁ | … | V_T]ᵀ``; TIES merges the blocks Vₜᵀ into V, and ``ν = U Σ Vᵀ``
    (arXiv:2410.19735, section 4).

    Choose it for LoRA adapters that started from different factors: their raw entries have little to agree on, the
    coordinates in a shared basis do.

    The trim is per block, as `ties_per_tensor` does it. Singular values that are rounding noise are left out.
    Tensors that are no matrices are averaged.

    Args:
        deltas: the updates νₜ, stacked; one matrix of the model (kernels as ``[out, everything else]``).
        weights: one number per task.
        density: the fraction of a block's entries kept, in (0, 1].

    Raises:
        FusionError: the density is not in (0, 1], or the weights differ within a matrix.

    >>> deltas = torch.stack([torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))])
    >>> knots(deltas, weights=torch.ones(2, 1, 1), density=1.0).abs().round(decimals=4)
    tensor([[4., 0.],
            [0., 2.]])
    """
    check_density("knots", density)
    if deltas.ndim < 3:
        return mean_of_others(deltas, weights)
    scales = one_per_task("knots", weights, deltas)
    matrices = as_matrices(deltas)
    u, s, vh = triplets(torch.cat(list(matrices), 1))
    blocks = torch.stack(vh.split(matrices.shape[2], 1))
    merged = (u * s) @ ties_per_tensor(blocks, weights=scales[:, None, None], density=density)
    return merged.reshape(deltas.shape[1:]).to(deltas.dtype)
