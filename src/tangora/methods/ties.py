"""TIES: trim, elect signs, merge the agreeing entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tangora.methods._limits import DENSITY, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sparsity import cutoffs_of, trim
from tangora.methods._sums import elected_mean, elected_sum, in_blocks

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["ties", "ties_per_tensor", "ties_sum"]


@fusion_method(
    "ties",
    granularity="model",
    neutral={"density": 1.0},
    reference="arXiv:2306.01708",
    default_weight=1.0,
    limits={"density": DENSITY},
    cutoff="density",
    after_thinning="elected_mean",
)
def ties(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    density: float = 0.2,
    cutoffs: Sequence[float] | None = None,
) -> Float[Tensor, "*param"]:
    """The mean of the updates' largest entries over the whole model, where their signs agree (global trim).

    With ``ν̂ₜ`` the ``⌈density·n⌉`` entries of νₜ that are largest in magnitude, and any equal to the smallest of
    them, the rest zero: ``γ = sgn(Σₜ ν̂ₜ)``, ``A = {t : sgn(ν̂ₜ) = γ}`` per entry, and
    ``ν = (1/|A|) Σ_{t∈A} λₜ ν̂ₜ`` (arXiv:2306.01708, algorithm 1; there λ is one number after the mean).

    Choose it when task vectors are dense and their signs conflict; raise the density for low-rank updates, which
    are spread out more evenly than those of full fine-tuning.

    The trim sees every site of a task as one vector, as in the paper, its code and fusion-bench. peft and mergekit
    trim each tensor by itself; that is ``ties_per_tensor``, and gives something else. The signs are elected on
    the unweighted entries and the weights multiply afterwards, so that they scale a task but do not change the
    election: peft does so too; mergekit weights before the election, and divides by the agreeing weights' sum.
    If the sum is exactly zero, no sign is elected and the entry is 0; the paper's code gives such an entry the
    sign of the majority of all the others.

    Args:
        deltas: the updates νₜ, stacked; every site, as one vector per task.
        weights: one row per task, broadcasting to the update.
        density: the fraction of entries kept, in (0, 1].
        cutoffs: the magnitude of each task's smallest entry that is kept; computed if None.

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> import torch
    >>> deltas = torch.tensor([[4.0, 1.0, 2.0, 0.0], [-1.0, 3.0, 6.0, 0.5]])
    >>> ties(deltas, weights=torch.ones(2, 1), density=0.5)
    tensor([4., 3., 4., 0.])
    """
    check_density("ties", density)
    return _ties(deltas, weights, cutoffs_of(deltas, density, cutoffs))


@fusion_method(
    "ties_per_tensor",
    granularity="tensor",
    neutral={"density": 1.0},
    reference="arXiv:2306.01708",
    default_weight=1.0,
    limits={"density": DENSITY},
    cutoff="density",
    after_thinning="elected_mean",
)
def ties_per_tensor(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    density: float = 0.2,
    cutoffs: Sequence[float] | None = None,
) -> Float[Tensor, "*param"]:
    """TIES with each tensor trimmed by itself, so that every site keeps the same fraction of its entries.

    The equation is that of `ties` with n the number of entries of one tensor: a departure from arXiv:2306.01708,
    and what peft and mergekit call TIES. Weights and zero signs are as in `ties`.

    Choose it to compare with peft or mergekit, or when sites differ so much in scale that a global trim would
    silence some of them; it also needs only one site in memory.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        density: the fraction of the tensor's entries kept, in (0, 1].
        cutoffs: the magnitude of each task's smallest entry that is kept; computed if None.

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> import torch
    >>> ties_per_tensor(torch.tensor([[4.0, 1.0], [2.0, 3.0]]), weights=torch.ones(2, 1), density=0.5)
    tensor([4., 3.])
    """
    check_density("ties_per_tensor", density)
    return _ties(deltas, weights, cutoffs_of(deltas, density, cutoffs))


@fusion_method(
    "ties_sum",
    granularity="model",
    neutral={"density": 1.0},
    reference="arXiv:2310.02575",
    default_weight=0.3,
    limits={"density": DENSITY},
    cutoff="density",
    after_thinning="elected_sum",
)
def ties_sum(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    density: float = 0.2,
    cutoffs: Sequence[float] | None = None,
) -> Float[Tensor, "*param"]:
    """The sum of the updates' largest entries over the whole model, where their signs agree: TIES without its mean.

    With ν̂ₜ and A as in `ties`, ``ν = Σ_{t∈A} λₜ ν̂ₜ``: the task vectors of AdaMerging++ (arXiv:2310.02575, section
    3.2.3), which are trimmed and kept where they agree with the elected sign before their coefficients are learned.

    Choose it with a search for its weights, AdaMerging above all, when the signs of dense task vectors conflict.

    Args:
        deltas: the updates νₜ, stacked; every site, as one vector per task.
        weights: one row per task, broadcasting to the update.
        density: the fraction of entries kept, in (0, 1].
        cutoffs: the magnitude of each task's smallest entry that is kept; computed if None.

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> import torch
    >>> ties_sum(torch.tensor([[4.0, 1.0], [2.0, -3.0]]), weights=torch.ones(2, 1), density=1.0)
    tensor([ 6., -3.])
    """
    check_density("ties_sum", density)
    least = cutoffs_of(deltas, density, cutoffs)
    return in_blocks(lambda d, w: elected_sum(list(map(trim, d, least)), w), deltas, weights)


def _ties(
    deltas: Float[Tensor, " tasks *param"], weights: Float[Tensor, "tasks *#param"], cutoffs: Sequence[float]
) -> Float[Tensor, "*param"]:
    return in_blocks(lambda d, w: elected_mean(list(map(trim, d, cutoffs)), w), deltas, weights)
