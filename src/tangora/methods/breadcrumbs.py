"""Model Breadcrumbs: drop the smallest and the largest entries."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._sums import in_blocks, weighted_sum, widened

__all__ = ["breadcrumbs"]

TAIL = Limit(low=0, high=1, open_high=True, fix="give a fraction of the entries, such as 0.1")


@fusion_method(
    "breadcrumbs",
    granularity="tensor",
    neutral={"bottom": 0.0, "top": 0.0},
    reference="arXiv:2312.06795",
    default_weight=0.3,
    limits={"bottom": TAIL, "top": TAIL},
)
def breadcrumbs(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    bottom: float = 0.85,
    top: float = 0.01,
) -> Float[Tensor, "*param"]:
    """The weighted sum of the updates without their smallest and their largest entries, tensor by tensor.

    ``ν = Σₜ λₜ mₜ ⊙ νₜ``, where the mask mₜ is 0 at the fraction ``bottom`` (β) of the tensor's entries that are
    smallest in magnitude and at the fraction ``top`` that are largest, and 1 between them (arXiv:2312.06795; there
    γ = 1 − top, and one λ).

    Choose it for task vectors of full fine-tuning with a few outliers that would rule the sum; `magnitude_prune`
    keeps exactly those. It needs no election, so tasks can be added one by one.

    Entries equal to the smallest one that is kept are all kept, and so are those equal to the largest one. The
    fractions are of each tensor, as in the paper; numbers of entries are rounded down. The best values depend on the
    model, so choose them on validation data.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        bottom: the fraction of smallest entries that is masked, in [0, 1).
        top: the fraction of largest entries that is masked, in [0, 1).

    Raises:
        ArgumentError: a fraction is not in [0, 1), or the two add up to 1 or more.

    >>> deltas = torch.tensor([[0.1, 1.0, -2.0, 9.0]])
    >>> breadcrumbs(deltas, weights=torch.ones(1, 1), bottom=0.25, top=0.25)
    tensor([ 0.,  1., -2.,  0.])
    """
    for name, value in (("bottom", bottom), ("top", top)):
        check_value("breadcrumbs", name, value, 0.5, TAIL)
    if bottom + top >= 1:
        got, fix = f"bottom {bottom:g}, top {top:g}", "keep some entries between them"
        raise ArgumentError("breadcrumbs: bottom + top must be less than 1", got=got, where="fuse", fix=fix)
    bounds = [_bounds(delta, bottom, top) for delta in deltas]
    return in_blocks(lambda d, w: weighted_sum(map(_between, d, bounds), w), deltas, weights)


def _bounds(delta: Float[Tensor, "*param"], bottom: float, top: float) -> tuple[float, float]:
    """Return the magnitudes of the smallest and of the largest entry that is kept."""
    magnitudes = widened(delta.detach()).abs().reshape(-1).sort().values
    count = len(magnitudes)
    if count == 0:
        return 0.0, math.inf
    below, above = (math.floor(Fraction(str(float(part))) * count) for part in (bottom, top))
    return float(magnitudes[below]), float(magnitudes[count - 1 - above])


def _between(delta: Float[Tensor, "*param"], bounds: tuple[float, float]) -> Float[Tensor, "*param"]:
    delta = widened(delta)
    magnitude = delta.abs()
    return torch.where((magnitude >= bounds[0]) & (magnitude <= bounds[1]), delta, 0.0)
