"""Singular values and vectors for methods that see an update as a matrix, without what only rounding made.

A low-rank update has singular values that are zero up to rounding, and their vectors are arbitrary: methods that
orthogonalize or equalize would turn that noise into part of the result. So all of them stop at the numerical rank;
for matrices of full rank nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._sums import weighted_sum, widened
from tangora.updates.truncation import thin_svd

__all__ = ["as_matrices", "decompose", "mean_of", "orthogonalized"]

Triplets = tuple[Float[Tensor, "out rank"], Float[Tensor, " rank"], Float[Tensor, "rank in"]]


def as_matrices(stacked: Float[Tensor, " tasks *param"]) -> Float[Tensor, "tasks out in"] | None:
    """The stack as matrices in float32 or better: the kernel of a convolution is ``[out, the rest]``.

    None for vectors and numbers (biases, norms), which have no singular vectors to speak of.
    """
    if stacked.ndim < 3:
        return None
    return widened(stacked).reshape(*stacked.shape[:2], math.prod(stacked.shape[2:])).contiguous()


def decompose(matrix: Float[Tensor, "out in"]) -> Triplets:
    """``u, s, vh`` down to the numerical rank: singular values under ``max(shape) · eps · s₁`` are rounding."""
    u, s, vh = thin_svd(matrix)
    rank = int((s > max(matrix.shape) * torch.finfo(s.dtype).eps * s[:1]).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def orthogonalized(columns: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The nearest matrix with orthonormal columns, ``PQᵀ`` of the SVD ``PDQᵀ`` (the Procrustes problem's answer).

    Where columns depend on each other it is the nearest partial isometry, which is unique.
    """
    p, _, qh = decompose(columns)
    return p @ qh


def mean_of(
    deltas: Sequence[Float[Tensor, "*param"]] | Float[Tensor, " tasks *param"], weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """``Σₜ wₜ νₜ / T``: what methods for matrices do with vectors and numbers."""
    return weighted_sum(deltas, weights) / len(deltas)
