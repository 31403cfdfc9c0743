"""Model Stock: the average, pulled towards the base by how much the experts disagree."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._angles import gram
from tangora.methods._registry import fusion_method
from tangora.methods._sums import weighted_sum

__all__ = ["model_stock"]


@fusion_method("model_stock", granularity="tensor", reference="arXiv:2403.19522", default_weight=1.0)
def model_stock(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """The mean of the updates times a factor that falls as the angle between them grows, tensor by tensor.

    ``ν = t · (1/T) Σₜ λₜ νₜ`` with ``t = T cos θ / (1 + (T − 1) cos θ)`` and θ the angle between updates
    (arXiv:2403.19522, the interpolation ratio for T models).

    Choose it for experts of the same task, or of tasks close to each other, trained with other seeds or settings: the
    angle tells how much of an update is noise. Unrelated tasks are nearly orthogonal, and little would be left of them.

    The paper has one angle for all pairs; here cos θ is the mean over the pairs. It is set to 0 if it is negative,
    which the paper's geometry excludes, or if an update is zero. The paper has λ = 1.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update; they multiply and do not change the angle.

    >>> deltas = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    >>> model_stock(deltas, weights=torch.ones(2, 1)).round(decimals=4)
    tensor([0.8284, 0.4142])
    """
    count = len(deltas)
    cosine = _mean_cosine(deltas) if count > 1 else 1.0
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return (weighted_sum(deltas, weights) * (ratio / count)).to(deltas.dtype)


def _mean_cosine(deltas: Float[Tensor, " tasks *param"]) -> float:
    """Return the mean cosine over all pairs, at least 0, in float64."""
    products = gram(deltas)
    norms = products.diagonal().sqrt()
    lengths = norms[:, None] * norms
    cosines = torch.where(lengths > 0, products / lengths, 0.0)
    pairs = len(deltas) * (len(deltas) - 1)
    return max(0.0, float(cosines.sum() - cosines.diagonal().sum()) / pairs)
