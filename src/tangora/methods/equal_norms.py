"""A step: the updates of all tasks get one norm at every site."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tangora.methods._steps import Change, fusion_step, norms_of

__all__ = ["equal_norms"]


def _scales(norms: Sequence[float]) -> tuple[list[float], None]:
    mean = math.fsum(norms) / max(1, sum(norm > 0 for norm in norms))
    return [mean / norm if norm > 0 else 0.0 for norm in norms], None


@fusion_step("equal_norms", reference="arXiv:2606.03723", by_norms=_scales)
def equal_norms(deltas: Float[Tensor, " tasks *param"]) -> Change:
    """Give the updates of all tasks the same norm, tensor by tensor, before a method fuses them.

    ``ν̂ₜ = νₜ · n̄ / ‖νₜ‖`` with ``n̄`` the mean of the Frobenius norms ``‖νₜ‖``, then any method; alone, ``Σₜ λₜ ν̂ₜ``.
    Compress-then-merge (arXiv:2606.03723) rescales its updates so before it looks for bases; see `ctm`.

    Choose it when the adapters differ in strength, as those of other learning rates or step counts do: without it the
    largest updates decide signs, trims and directions. ``equal_norms+ties_per_tensor`` puts it before a method.

    An update of zero stays zero and does not count in the mean. A weight multiplies the rescaled update. Methods that
    need the whole model at once cannot follow, as it works tensor by tensor. The cost is one pass over the updates; a
    sum of low-rank updates stays exact, as factors.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.

    >>> import torch
    >>> equal_norms(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), weights=torch.ones(2, 1))
    tensor([2., 2.])
    """
    scales, _ = _scales(norms_of(deltas))
    return Change(deltas * deltas.new_tensor(scales).reshape(-1, *(1,) * (deltas.ndim - 1)))
