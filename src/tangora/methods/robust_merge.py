"""RobustMerge: factors are pruned, and directions that lost much by it are strengthened."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import DENSITY, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sparsity import threshold, trim
from tangora.methods._spectral import as_matrices, decompose, mean_of
from tangora.methods._sums import weighted_sum

__all__ = ["robust_merge"]

_EQUAL = 1 - 1e-5  # magnitudes of singular vectors that are equal by symmetry: rounding must not choose between them


@fusion_method(
    "robust_merge",
    granularity="tensor",
    exact=False,
    symmetric=False,  # the inputs' factor alone gives the compensation
    neutral={"density": 1.0},
    reference="arXiv:2502.17159",
    default_weight=0.3,
    copies=(6, 10),
    limits={"density": DENSITY},
)
def robust_merge(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], density: float = 0.8
) -> Float[Tensor, "*param"]:
    """The sum of products of pruned factors, with directions scaled by what the pruning took from them (RobustMerge).

    With ``νₜ = BₜAₜ``, the largest entries of Bₜ and of Aₜ are kept, ``B̂ₜ`` and ``Âₜ``. Direction i is compensated by
    ``sₜᵢ = Σⱼ|Aₜᵢⱼ| / Σⱼ|Âₜᵢⱼ|``, divided by its mean over the tasks, and ``ν = Σₜ λₜ B̂ₜ diag(sₜ) Âₜ``
    (arXiv:2502.17159, RobustMerge: pruning and complementary scaling of the parameters of adapters).

    Choose it for LoRA adapters of tasks that must also serve unseen ones: small parameters, where tasks collide by
    chance, are dropped, and each task's weak directions keep their strength beside those of the others.

    The factors are the balanced ones of the singular value decomposition, ``B = U√Σ`` and ``A = √Σ Vᵀ``: a method sees
    updates, so the result does not depend on how an adapter factors them, as the reference's does. The reference also
    sums B and A of all tasks apart, with cross terms between tasks, and has λ = 2; here products are summed, so
    that λ is of the size of `task_arithmetic`'s. The details of its normalization and its density could not be
    confirmed. If singular values of an update are equal, its factors are not unique, nor is the result. Singular
    values that are zero up to rounding are left out. A convolution's kernel is used as ``[out, the rest]``; vectors and
    numbers are averaged. The cost is one decomposition per task.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        density: the fraction of the entries of each factor that is kept, in (0, 1].

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> deltas = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]]])
    >>> robust_merge(deltas, weights=torch.ones(2, 1, 1), density=0.5).round(decimals=4)
    tensor([[4., 3.],
            [0., 0.]])
    """
    check_density("robust_merge", density)
    matrices = as_matrices(deltas)
    if matrices is None:
        return mean_of(deltas, weights).to(deltas.dtype)
    factors = [(u * s.sqrt(), s.sqrt()[:, None] * vh) for u, s, vh in map(decompose, matrices)]
    pruned = [(_pruned(b, density), _pruned(a, density)) for b, a in factors]
    scales = _compensation([a for _, a in factors], [a for _, a in pruned])
    terms = ((b * scale) @ a for (b, a), scale in zip(pruned, scales, strict=True))
    return weighted_sum((term.reshape(deltas.shape[1:]) for term in terms), weights).to(deltas.dtype)


def _pruned(factor: Float[Tensor, "n k"], density: float) -> Float[Tensor, "n k"]:
    return trim(factor, _EQUAL * threshold(factor, density)) if factor.numel() else factor


def _compensation(whole: list[Float[Tensor, "k in"]], pruned: list[Float[Tensor, "k in"]]) -> list[Float[Tensor, " k"]]:
    """Return how much larger a direction was before pruning, divided by the mean of the tasks that have as many.

    A direction that is pruned away entirely takes no part.
    """
    scales = torch.zeros(len(whole), max(len(a) for a in whole), dtype=whole[0].dtype, device=whole[0].device)
    for row, before, after in zip(scales, whole, pruned, strict=True):
        left = after.abs().sum(1)
        row[: len(before)] = torch.where(left > 0, before.abs().sum(1) / left.clamp(min=1e-30), 0.0)
    means = scales.sum(0) / (scales > 0).sum(0).clamp(min=1)
    return [(row / means.clamp(min=1e-30))[: len(a)] for row, a in zip(scales, whole, strict=True)]
