"""The weighted sum of the updates' largest entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tangora.methods._limits import DENSITY, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sparsity import cutoffs_of, trim
from tangora.methods._sums import in_blocks, weighted_sum

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["magnitude_prune"]


@fusion_method(
    "magnitude_prune",
    granularity="tensor",
    neutral={"density": 1.0},
    reference="arXiv:1506.02626",
    default_weight=0.3,
    limits={"density": DENSITY},
    cutoff="density",
    after_thinning="sum",
)
def magnitude_prune(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    density: float = 0.2,
    cutoffs: Sequence[float] | None = None,
) -> Float[Tensor, "*param"]:
    """The weighted sum of the updates after each keeps only its largest entries, tensor by tensor.

    ``ν = Σₜ λₜ trim(νₜ, density)``, where trim keeps the ``⌈density·n⌉`` entries of the tensor that are largest
    in magnitude, and any equal to the smallest of them. The criterion is arXiv:1506.02626's, applied to updates;
    as a fusion method it is known from peft's ``magnitude_prune``, which keeps ``⌊density·n⌋`` of A and of B,
    where this keeps entries of whatever space is fused.

    Choose it to see what the trim of TIES does by itself, without the election of signs.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        density: the fraction of entries kept, in (0, 1].
        cutoffs: the magnitude of each task's smallest entry that is kept; computed if None.

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> import torch
    >>> magnitude_prune(torch.tensor([[4.0, 1.0], [1.0, -8.0]]), weights=torch.tensor([[1.0], [0.5]]), density=0.5)
    tensor([ 4., -4.])
    """
    check_density("magnitude_prune", density)
    least = cutoffs_of(deltas, density, cutoffs)
    return in_blocks(lambda d, w: weighted_sum(map(trim, d, least), w), deltas, weights)
