"""Model breadcrumbs: neither the largest nor the smallest entries."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods._limits import DENSITY, Limit, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sparsity import kept, threshold
from tangora.methods._sums import in_blocks, weighted_sum, widened

__all__ = ["breadcrumbs"]

OUTLIERS = Limit(low=0, high=1, open_high=True, fix="give the fraction of largest entries to drop, such as 0.01")


@fusion_method(
    "breadcrumbs",
    granularity="tensor",
    reference="arXiv:2312.06795",
    default_weight=0.3,
    limits={"density": DENSITY, "outliers": OUTLIERS},
)
def breadcrumbs(
    deltas: Float[Tensor, "tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    density: float = 0.15,
    outliers: float = 0.01,
) -> Float[Tensor, "*param"]:
    """The weighted sum of the updates after each lost its largest and its smallest entries, tensor by tensor.

    ``ν = Σₜ λₜ mₜ ⊙ νₜ``; mₜ drops the ``⌈outliers·n⌉`` largest magnitudes (and those equal to the last of them) and of
    what follows keeps ``⌈density·n⌉`` (and those equal to the last): with the paper's β and γ, ``outliers = 1 − γ``
    and ``density = γ − β`` (arXiv:2312.06795, equation 2).

    Choose it for full fine-tuning of large models, where a few outliers of one task would override every other task.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        density: the fraction of entries kept, in (0, 1].
        outliers: the fraction of largest entries dropped, in [0, 1).

    Raises:
        FusionError: a fraction is out of range, or the two are more than 1 together.

    >>> deltas = torch.tensor([[9.0, 1.0, 3.0, 2.0]])
    >>> breadcrumbs(deltas, weights=torch.ones(1, 1), density=0.5, outliers=0.25)
    tensor([0., 0., 3., 2.])
    """
    check_density("breadcrumbs", density)
    OUTLIERS.check("breadcrumbs", "outliers", outliers)
    if density + outliers > 1 + 1e-9:
        got, fix = f"{density:g} + {outliers:g}", "lower one of them"
        raise FusionError("breadcrumbs: density and outliers must be at most 1 together", got=got, fix=fix)
    bounds = [_bounds(delta, density, outliers) for delta in deltas]
    return in_blocks(lambda d, w: weighted_sum(_between(d, bounds), w), deltas, weights)


def _bounds(delta: Tensor, density: float, outliers: float) -> tuple[float, float]:
    """Magnitudes at and above the second are dropped, those under the first too."""
    if not outliers:
        return threshold(delta, density), torch.inf
    highest = threshold(delta, outliers)
    rest = widened(delta).abs().flatten()
    rest = rest[rest < highest]
    count = min(kept(density, delta.numel()), len(rest))
    return (float(rest.kthvalue(len(rest) - count + 1).values) if count else torch.inf), highest


def _between(deltas: Tensor, bounds: list[tuple[float, float]]) -> list[Tensor]:
    wide = [widened(delta) for delta in deltas]
    inside = [(d.abs() >= low) & (d.abs() < high) for d, (low, high) in zip(wide, bounds, strict=True)]
    return [torch.where(i, d, 0.0) for d, i in zip(wide, inside, strict=True)]
