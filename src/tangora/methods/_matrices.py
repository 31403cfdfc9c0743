"""What the methods that see a layer as a matrix share: its shape, its singular triplets, orthonormal bases."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods._sums import weighted_sum, widened

__all__ = ["as_matrices", "mean_of_others", "nearest_orthonormal", "one_per_task", "triplets"]


def one_per_task(method: str, weights: Float[Tensor, "tasks *#param"], deltas: Tensor) -> Float[Tensor, "tasks"]:
    """λ as one number per task: a direction that entries share cannot be weighted entry by entry.

    Raises:
        FusionError: the weights differ within a task.
    """
    rows = weights.reshape(len(weights), -1).to(widened(deltas[:0]).dtype)
    if rows.shape[1] > 1 and bool((rows != rows[:, :1]).any()):
        fix = "give one number per task and site"
        raise FusionError(f"{method}: weights must not differ within a matrix", where="fuse.weights", fix=fix)
    return rows[:, 0]


def as_matrices(deltas: Float[Tensor, "tasks *param"]) -> Float[Tensor, "tasks out rest"]:
    """Matrices as they are, kernels of convolutions as ``[out, everything else]``, in float32 or better."""
    return widened(deltas).reshape(*deltas.shape[:2], -1)


def mean_of_others(
    deltas: Float[Tensor, "tasks *param"], weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """``(1/T) Σₜ λₜ νₜ``: what stands in for a spectrum where a tensor is no matrix (biases, norms)."""
    return (weighted_sum(deltas, weights) / len(deltas)).to(deltas.dtype)


def triplets(matrix: Float[Tensor, "out in"]) -> tuple[Tensor, Tensor, Tensor]:
    """``u, s, vh`` of the singular values that are not rounding noise; none of a zero matrix.

    The directions of a null space are arbitrary: a method that gave them weight would return noise.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    noise = max(matrix.shape) * torch.finfo(s.dtype).eps * s.max() if s.numel() else 0.0
    rank = int((s > noise).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def nearest_orthonormal(columns: Float[Tensor, "out k"]) -> Float[Tensor, "out k"]:
    """The matrix with orthonormal columns that is nearest to the given ones: ``P Qᵀ`` of their SVD ``P D Qᵀ``."""
    p, _, q = torch.linalg.svd(columns, full_matrices=False)
    nearest: Tensor = p @ q
    return nearest
