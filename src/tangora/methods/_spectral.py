"""Singular value decompositions for methods on matrices, without singular values that are only rounding.

A low-rank update has singular values that are zero up to rounding, and their vectors are arbitrary: methods that
orthogonalize or equalize would turn that noise into part of the result. So all decompositions stop at the numerical
rank; for matrices of full rank nothing is omitted.
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
    """Return the stack as matrices in float32 or better; the kernel of a convolution becomes ``[out, the rest]``.

    None for vectors and numbers (biases, norms).
    """
    if stacked.ndim < 3:
        return None
    return widened(stacked).reshape(*stacked.shape[:2], math.prod(stacked.shape[2:])).contiguous()


def decompose(matrix: Float[Tensor, "out in"], slack: float = 1.0) -> Triplets:
    """Return ``u, s, vh`` up to the numerical rank: singular values below ``max(shape) · eps · s₁`` are rounding.

    ``slack`` multiplies that bound, for a matrix that was itself computed from such decompositions.
    """
    u, s, vh = thin_svd(matrix)
    rank = int((s > slack * max(matrix.shape) * torch.finfo(s.dtype).eps * s[:1]).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def orthogonalized(columns: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return the nearest matrix with orthonormal columns, ``PQᵀ`` of the SVD ``PDQᵀ`` (the Procrustes solution).

    If columns are linearly dependent, it is the nearest partial isometry, which is unique.
    """
    p, _, qh = decompose(columns)
    return p @ qh


def mean_of(
    deltas: Sequence[Float[Tensor, "*param"]] | Float[Tensor, " tasks *param"], weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """Return ``Σₜ wₜ νₜ / T``, which methods on matrices use for vectors and numbers."""
    return weighted_sum(deltas, weights) / len(deltas)
