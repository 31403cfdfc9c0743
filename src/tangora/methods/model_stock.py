"""Model stock: how far to go towards the mean, read off the angle between the updates."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._registry import fusion_method
from tangora.methods._sums import weighted_sum, widened

__all__ = ["model_stock"]


@fusion_method("model_stock", granularity="tensor", reference="arXiv:2403.19522", default_weight=1.0)
def model_stock(
    deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """The mean of the updates, shortened by as much as they disagree, tensor by tensor.

    ``ν = t · (1/T) Σₜ λₜ νₜ`` with ``t = T cos θ / (1 + (T − 1) cos θ)`` and cos θ the mean cosine of two different
    updates (arXiv:2403.19522, equation 5 for any number of models).

    Choose it for several fine-tunings of one task, whose mean lies near the centre of good solutions; updates of
    unrelated tasks are nearly orthogonal, and then it stays at the base model.

    cos θ is cut to [0, 1], where the paper's picture holds; the weights multiply after it was measured.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.

    >>> deltas = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # at 45 degrees
    >>> model_stock(deltas, weights=torch.ones(2, 1))
    tensor([0.8284, 0.4142])
    """
    count = len(deltas)
    flat = widened(deltas).reshape(count, -1).double()
    unit = flat / flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    gram = unit @ unit.T
    pairs = count * (count - 1)
    cosine = float(((gram.sum() - gram.diagonal().sum()) / pairs).clamp(0, 1)) if pairs else 1.0
    shortened = count * cosine / (1 + (count - 1) * cosine)
    return (weighted_sum(deltas, weights) * (shortened / count)).to(deltas.dtype)
