"""Will these adapters add up? Cosine similarity of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.analysis._vectors import check
from tangora.updates.task_vector import TaskVector

__all__ = ["cosine_matrix"]


def cosine_matrix(task_vectors: Sequence[TaskVector]) -> Float[Tensor, "tasks tasks"]:
    """Return the cosine similarity between task vectors, over all their sites together, in float64.

    ``cos(t, u) = ⟨ν_t, ν_u⟩ / (‖ν_t‖ ‖ν_u‖)`` with the Frobenius inner product of the updates themselves. (The code of
    arXiv:2310.04742 compares flattened factors instead, which depends on how an update is factored.) Inner products
    are taken on the factors: no update becomes dense.

    The further an off-diagonal value is from 0, the more two tasks pull in the same direction (or in opposite ones),
    and the more a sum changes both. Near 0 they are orthogonal, and a sum leaves each almost unchanged.

    Args:
        task_vectors: one per task; a site that only one has is zero in the other.

    Returns:
        A symmetric matrix with values in [-1, 1]; a zero vector has no direction and gets 0, on the diagonal too.

    Raises:
        ArgumentError: there is no task vector.
        FusionError: two task vectors have different shapes at one site.

    >>> from tangora.updates.task_vector import LowRank, TaskVector
    >>> a = TaskVector({"layer": LowRank(torch.tensor([[1.0], [0.0]]), torch.ones(1, 2))})
    >>> b = TaskVector({"layer": LowRank(torch.tensor([[1.0], [1.0]]), torch.ones(1, 2))})
    >>> cosine_matrix([a, b]).round(decimals=3).tolist()
    [[1.0, 0.707], [0.707, 1.0]]
    """
    check(task_vectors)
    size = len(task_vectors)
    gram = torch.zeros(size, size, dtype=torch.float64)
    for i, one in enumerate(task_vectors):
        for j, other in enumerate(task_vectors[: i + 1]):
            gram[i, j] = gram[j, i] = float(one.dot(other))
    norms = gram.diagonal().clamp_min(0).sqrt()
    outer = norms[:, None] * norms[None, :]
    cosine = torch.where(outer > 0, gram / outer.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return cosine.clamp(-1, 1)
