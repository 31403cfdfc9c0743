"""CART: the mean of the updates, and the leading directions in which each task differs from it."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._spectral import as_matrices, decompose
from tangora.methods._sums import weighted_sum, widened

__all__ = ["cart"]

SHARE = Limit(low=0, high=1, open_low=True, fix="give the fraction of directions to keep, such as 0.08")


@fusion_method(
    "cart",
    granularity="tensor",
    exact=False,
    reference="arXiv:2412.12153",
    default_weight=1.0,
    copies=(6, 10),
    limits={"share": SHARE},
    homogeneous=False,  # the mean is not multiplied by the weights
    additive=False,
)
def cart(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], share: float = 0.08
) -> Float[Tensor, "*param"]:
    """The mean of the updates plus the leading singular directions of each task's difference from the mean (CART).

    ``ν = ν̄ + Σₜ λₜ [νₜ − ν̄]ₖ`` with ``ν̄ = (1/T) Σₜ νₜ`` and ``[·]ₖ`` the best approximation of rank k
    (arXiv:2412.12153, there on whole weights with one λ, which is the same: ``θₜ − θ̄ = νₜ − ν̄``).

    Choose it when the average is a good start and only each task's main difference from it should be added: without
    the cut the differences cancel, and for one λ the result is the average.

    The weights multiply the differences alone: 0 is the average of all tasks, and a negative weight moves away from a
    task. So it is not homogeneous, and each λ of a grid is a fusion of its own. k is ``share · r``, rounded up, where r
    is the numerical rank of the difference; the reference goes by ``min(out, in)``, by which low-rank updates would
    never be cut. For matrices of full rank the two are equal. A convolution's kernel is used as ``[out, the rest]``; a
    vector is a matrix of one row, of which nothing is cut. The cost is one decomposition per task.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        share: the fraction of the singular directions of each difference that is kept, in (0, 1].

    Raises:
        ArgumentError: the share is not in (0, 1].

    >>> deltas = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 3.0]]])
    >>> cart(deltas, weights=torch.tensor([1.0, 0.5]).reshape(2, 1, 1), share=0.5).round(decimals=4)
    tensor([[3., 0.],
            [0., 2.]])
    """
    check_value("cart", "share", share, 0.08, SHARE)
    wide = [widened(delta) for delta in deltas]
    mean = wide[0] / len(wide)
    for delta in wide[1:]:
        mean = mean + delta / len(wide)
    differences = torch.stack([delta - mean for delta in wide])
    matrices = as_matrices(differences)
    cut = differences if matrices is None else [_leading(m, share).reshape(mean.shape) for m in matrices]
    return (mean + weighted_sum(cut, weights)).to(deltas.dtype)


def _leading(matrix: Float[Tensor, "out in"], share: float) -> Float[Tensor, "out in"]:
    """Return the best approximation by ``share`` of the singular triplets that are not zero, rounded up."""
    u, s, vh = decompose(matrix)
    rank = math.ceil(Fraction(str(float(share))) * len(s))
    return (u[:, :rank] * s[:rank]) @ vh[:rank]
