"""KnOTS: TIES on the task parts of a common singular value decomposition."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import DENSITY, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sparsity import threshold, trim
from tangora.methods._spectral import as_matrices, decompose
from tangora.methods._sums import elected_mean, weighted_sum, widened

__all__ = ["knots"]

_EQUAL = 1 - 1e-5  # the Vₜ have entries of one magnitude by their nature: rounding must not choose between them


@fusion_method(
    "knots",
    granularity="tensor",
    exact=False,
    rotates_outputs=True,
    symmetric=False,  # the outputs' directions are common, the inputs' each task's own
    neutral={"density": 1.0},
    reference="arXiv:2410.19735",
    default_weight=1.0,
    limits={"density": DENSITY},
    copies=(6, 10),
)
def knots(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], density: float = 0.2
) -> Float[Tensor, "*param"]:
    """TIES in the coordinates of the tasks' common output directions (KnOTS-TIES).

    ``[ν₁ | … | ν_T] = U Σ [V₁ | … | V_T]`` by one singular value decomposition. The Vₜ are written in one basis, and
    are fused as `ties_per_tensor` does, to ``ν = U Σ (1/|A|) Σ_{t∈A} λₜ V̂ₜ`` (arXiv:2410.19735, KnOTS-TIES).

    Choose it for LoRA adapters that were trained apart: what TIES elects are then strengths of shared directions, not
    entries of matrices that have little in common. Set the density by validation.

    The trim is per site and keeps entries that are equal to the smallest one up to rounding; the weights come after the
    election, as in `ties_per_tensor`. Directions that are zero up to rounding take no part. A convolution's kernel is
    taken as ``[out, the rest]``; vectors and numbers are fused by `ties_per_tensor`, which is what the equation
    gives for one row.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        density: the fraction of the entries of each Vₜ that is kept, in (0, 1].

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> deltas = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[4.0, 4.0], [0.0, 0.0]]])
    >>> knots(deltas, weights=torch.ones(2, 1, 1), density=1.0).round(decimals=4)
    tensor([[3., 4.],
            [0., 0.]])
    """
    check_density("knots", density)
    matrices = as_matrices(deltas)
    if matrices is None:
        trimmed = [trim(delta, threshold(delta, density)) for delta in map(widened, deltas)]
        return elected_mean(trimmed, weights).to(deltas.dtype)
    u, s, vh = decompose(torch.cat(list(matrices), 1))
    # What a task that changes nothing has there is rounding, of which a trim would keep a share.
    coordinates = [v * bool(m.any()) for v, m in zip(vh.split(matrices.shape[2], 1), matrices, strict=True)]
    agreeing = _agreeing([trim(v, _EQUAL * threshold(v, density)) for v in coordinates])
    terms = ((u * s) @ part for part in agreeing)
    return weighted_sum((term.reshape(deltas.shape[1:]) for term in terms), weights).to(deltas.dtype)


def _agreeing(sparse: list[Float[Tensor, "rank in"]]) -> list[Float[Tensor, "rank in"]]:
    """Return each task's part of the elected mean, so that weights can multiply in the update's own coordinates."""
    sign = torch.stack(sparse).double().sum(0).sign().to(sparse[0].dtype)
    chosen = [delta * sign > 0 for delta in sparse]
    count = torch.stack(chosen).sum(0).clamp(min=1)
    return [torch.where(mask, delta / count, 0.0) for mask, delta in zip(chosen, sparse, strict=True)]
