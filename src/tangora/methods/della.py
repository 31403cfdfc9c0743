"""DELLA: drop entries at random, small ones more often, then elect signs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.methods._limits import DENSITY, Limit, check_density, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._sums import elected_mean, widened

__all__ = ["della"]

WINDOW = Limit(low=0, high=1, fix="give the width of the window of probabilities, such as 0.2")


@fusion_method(
    "della",
    granularity="tensor",
    symmetric=False,  # it ranks in rows
    neutral={"density": 1.0, "window": 0.0},
    reference="arXiv:2406.11617",
    default_weight=1.0,
    random=True,
    limits={"density": DENSITY, "window": WINDOW},
)
def della(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    uniforms: Float[Tensor, " tasks *param"],
    density: float = 0.5,
    window: float = 0.2,
) -> Float[Tensor, "*param"]:
    """DARE with a TIES election, in which smaller entries of a row are dropped with higher probability.

    MAGPRUNE: in a row of n entries the one of rank r (0 is the largest in magnitude) is dropped with probability
    ``pᵣ = p + ε·((r + ½)/n − ½)`` with ``p = 1 − density`` and ε the ``window``, and is divided by ``1 − pᵣ`` when it
    stays. Then, as in `ties`: ``γ = sgn(Σₜ ν̂ₜ)``, ``A = {t : sgn(ν̂ₜ) = γ}`` per entry, and
    ``ν = (1/|A|) Σ_{t∈A} λₜ ν̂ₜ`` (arXiv:2406.11617: drop, elect, fuse).

    Choose it where `dare_ties` helps and a low density costs too much: the large entries survive.

    The paper counts whole ranks from ``p_min = p − ε/2`` up; the half makes the mean exactly p in rows of any
    length. Rows are those of ``[out, the rest]``; a vector is one row. Of equal magnitudes the first ranks higher.
    Weights come after the election, and a sum of exactly zero elects no sign, as in `ties`.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        uniforms: numbers in [0, 1), shaped like ``deltas``; an entry stays when its number is under ``1 − pᵣ``.
        density: the mean fraction of entries kept, in (0, 1].
        window: ε, the difference of the probabilities of a row's smallest and largest entries.

    Raises:
        ArgumentError: the density is not in (0, 1], or ``density ± window/2`` leaves [0, 1].

    >>> uniforms = torch.tensor([[0.55, 0.45, 0.65, 0.1]])
    >>> della(torch.tensor([[4.0, 1.0, -2.0, 0.1]]), weights=torch.ones(1, 1), uniforms=uniforms, window=0.8)
    tensor([5.0000, 0.0000, 0.0000, 0.5000])
    """
    check_density("della", density)
    check_value("della", "window", window, 0.2, WINDOW)
    if window > 2 * min(density, 1 - density):
        got = f"density {density:g}, window {window:g}"
        fix = f"at this density the window may be {2 * min(density, 1 - density):g}"
        raise ArgumentError("della: density ± window/2 must stay in [0, 1]", got=got, where="fuse.window", fix=fix)
    pairs = zip(map(widened, deltas), uniforms, strict=True)
    return elected_mean([_sampled(d, u, density, window) for d, u in pairs], weights).to(deltas.dtype)


def _sampled(
    delta: Float[Tensor, "*param"], uniform: Float[Tensor, "*param"], density: float, window: float
) -> Float[Tensor, "*param"]:
    rows = delta.reshape(1, -1) if delta.ndim < 2 else delta.reshape(delta.shape[0], -1)
    n = max(1, rows.shape[1])
    order = rows.abs().argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(n, dtype=rows.dtype, device=rows.device)[: rows.shape[1]].expand_as(rows)
    keep = density - window * ((torch.empty_like(rows).scatter_(1, order, ranks) + 0.5) / n - 0.5)
    keep = keep.reshape(delta.shape)
    return torch.where(uniform < keep, delta / keep, 0.0)
