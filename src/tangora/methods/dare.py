"""DARE: drop entries at random and rescale, alone or before an election of signs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import DENSITY, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sparsity import rescaled_samples
from tangora.methods._sums import elected_mean, in_blocks, weighted_sum

__all__ = ["dare", "dare_ties"]


@fusion_method(
    "dare",
    granularity="element",
    neutral={"density": 1.0},
    reference="arXiv:2311.03099",
    default_weight=0.3,
    random=True,
    after_thinning="sum",
    limits={"density": DENSITY},
)
def dare(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    uniforms: Float[Tensor, " tasks *param"],
    density: float = 0.5,
) -> Float[Tensor, "*param"]:
    """The weighted sum of the updates after dropping entries at random and rescaling those that stay.

    ``mₜ ~ Bernoulli(p)``, ``ν̃ₜ = (1 − mₜ) ⊙ νₜ``, ``ν̂ₜ = ν̃ₜ / (1 − p)`` with ``p = 1 − density``
    (arXiv:2311.03099, section 3.2), then ``ν = Σₜ λₜ ν̂ₜ`` as in task arithmetic.

    Choose it for many dense task vectors that collide: fewer entries of different tasks meet, at the price of
    noise, whose variance grows as 1/density; its mean is task arithmetic.

    The uniform numbers are an argument, so that the result depends on the arguments only. The paper's densities are
    0.1 and less, for full fine-tuning of large models; a low-rank update with dropped entries is dense.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update.
        uniforms: numbers in [0, 1), shaped like ``deltas``; an entry stays when its number is under ``density``.
        density: the fraction of entries kept, in (0, 1].

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> import torch
    >>> uniforms = torch.tensor([[0.1, 0.9], [0.2, 0.3]])
    >>> dare(torch.tensor([[4.0, 1.0], [1.0, 8.0]]), weights=torch.ones(2, 1), uniforms=uniforms, density=0.5)
    tensor([10., 16.])
    """
    check_density("dare", density)
    return in_blocks(lambda d, w, u: weighted_sum(rescaled_samples(d, u, density), w), deltas, weights, uniforms)


@fusion_method(
    "dare_ties",
    granularity="element",
    neutral={"density": 1.0},
    reference="arXiv:2311.03099",
    default_weight=1.0,
    random=True,
    after_thinning="elected_mean",
    limits={"density": DENSITY},
)
def dare_ties(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    uniforms: Float[Tensor, " tasks *param"],
    density: float = 0.5,
) -> Float[Tensor, "*param"]:
    """DARE instead of the trim of TIES: random entries, then elected signs and the mean of the agreeing entries.

    With ν̂ₜ of `dare`: ``γ = sgn(Σₜ ν̂ₜ)``, ``A = {t : sgn(ν̂ₜ) = γ}`` per entry, ``ν = (1/|A|) Σ_{t∈A} λₜ ν̂ₜ``
    (arXiv:2311.03099 before arXiv:2306.01708). There is no trim by magnitude, so it works entry by entry.

    Choose it when `dare` helps and signs still conflict at the entries that meet.

    Weights multiply after the election and a sum of exactly zero elects no sign, as in `ties`; mergekit weights
    before the election.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update.
        uniforms: numbers in [0, 1), shaped like ``deltas``; an entry stays when its number is under ``density``.
        density: the fraction of entries kept, in (0, 1].

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> import torch
    >>> uniforms = torch.tensor([[0.1, 0.1], [0.2, 0.3]])
    >>> dare_ties(torch.tensor([[4.0, 1.0], [-1.0, 8.0]]), weights=torch.ones(2, 1), uniforms=uniforms, density=0.5)
    tensor([8., 9.])
    """
    check_density("dare_ties", density)
    return in_blocks(lambda d, w, u: elected_mean(rescaled_samples(d, u, density), w), deltas, weights, uniforms)
