"""A step: the updates of all tasks get one norm at every site."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._steps import Change, fusion_step

__all__ = ["equal_norms"]


@fusion_step("equal_norms", reference="arXiv:2606.03723")
def equal_norms(deltas: Float[Tensor, " tasks *param"]) -> Change:
    """Give the updates of all tasks the same norm, tensor by tensor, before a method fuses them.

    ``ν̂ₜ = νₜ · n̄ / ‖νₜ‖`` with ``n̄`` the mean of the Frobenius norms ``‖νₜ‖``, then any method; alone, ``Σₜ λₜ ν̂ₜ``.
    Compress-then-merge (arXiv:2606.03723) rescales its updates so before it looks for bases; see `ctm`.

    Choose it when the adapters differ in strength, as those of other learning rates or step counts do: without it the
    largest updates decide signs, trims and directions. ``equal_norms+ties_per_tensor`` puts it before a method.

    An update of zero stays zero and does not count in the mean. A weight multiplies the rescaled update. Methods that
    need the whole model at once cannot follow, as it works tensor by tensor. The cost is one pass over the updates.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.

    >>> equal_norms(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), weights=torch.ones(2, 1))
    tensor([2., 2.])
    """
    norms = torch.linalg.vector_norm(deltas.reshape(len(deltas), -1), dim=1, dtype=torch.float64)
    mean = norms.sum() / (norms > 0).sum().clamp(min=1)
    scales = torch.where(norms > 0, mean / norms.clamp(min=1e-300), 0.0).to(deltas.dtype)
    return Change(deltas * scales.reshape(-1, *(1,) * (deltas.ndim - 1)))
