"""Will these adapters add up? Cosine similarity and sign conflict of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.task_vector import TaskVector

__all__ = ["cosine_matrix", "sign_conflict"]

_CHUNK = 1 << 20  # entries whose signs are counted at once: sums of that many ±1 are exact in float32


def cosine_matrix(task_vectors: Sequence[TaskVector]) -> Float[Tensor, "tasks tasks"]:
    """Cosine similarity between task vectors, over all their sites together, in float64.

    ``cos(t, u) = ⟨ν_t, ν_u⟩ / (‖ν_t‖ ‖ν_u‖)`` with the Frobenius inner product of the updates themselves. (The code of
    arXiv:2310.04742 compares flattened factors instead, which depends on how an update is factored.) Inner products
    are taken on the factors: no update becomes dense.

    The further off the diagonal from 0, the more two tasks pull along the same directions (or against each other),
    and the more their sum does to either. Near 0 they are orthogonal, and a sum leaves each almost as it was.

    Args:
        task_vectors: one per task; a site that only one has is zero in the other.

    Returns:
        A symmetric matrix with values in [-1, 1]; a zero vector has no direction and gets 0, on the diagonal too.

    Raises:
        FusionError: no task vector was given, or two give one site different shapes.

    >>> from tangora.task_vector import LowRank, TaskVector
    >>> a = TaskVector({"layer": LowRank(torch.tensor([[1.0], [0.0]]), torch.ones(1, 2))})
    >>> b = TaskVector({"layer": LowRank(torch.tensor([[1.0], [1.0]]), torch.ones(1, 2))})
    >>> cosine_matrix([a, b]).round(decimals=3).tolist()
    [[1.0, 0.707], [0.707, 1.0]]
    """
    _check(task_vectors)
    size = len(task_vectors)
    gram = torch.zeros(size, size, dtype=torch.float64)
    for i, one in enumerate(task_vectors):
        for j, other in enumerate(task_vectors[: i + 1]):
            gram[i, j] = gram[j, i] = float(one.dot(other))
    norms = gram.diagonal().clamp_min(0).sqrt()
    outer = norms[:, None] * norms[None, :]
    cosine = torch.where(outer > 0, gram / outer.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return cosine.clamp(-1, 1)


def sign_conflict(task_vectors: Sequence[TaskVector]) -> Float[Tensor, "tasks tasks"]:
    """Fraction of entries where two task vectors have opposite signs, of those where neither is zero.

    Half is chance. TIES (arXiv:2306.01708) resolves such conflicts by electing a sign per entry, so it has most to
    offer where this is high *and* the entries are large; the cosine weighs by size, this counts.

    Sites are made dense one at a time.

    Args:
        task_vectors: one per task; a site that only one has is zero in the other.

    Returns:
        A symmetric float64 matrix with values in [0, 1] and a zero diagonal; 0 where no entry is shared.

    Raises:
        FusionError: no task vector was given, or two give one site different shapes.

    >>> from tangora.task_vector import Dense, TaskVector
    >>> a = TaskVector({"layer": Dense(torch.tensor([1.0, 2.0, -1.0, 0.0]))})
    >>> b = TaskVector({"layer": Dense(torch.tensor([1.0, -2.0, -3.0, 5.0]))})
    >>> round(sign_conflict([a, b])[0, 1].item(), 3)
    0.333
    """
    _check(task_vectors)
    size = len(task_vectors)
    agree, both = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for site in dict.fromkeys(site for vector in task_vectors for site in vector):
        members = [i for i, vector in enumerate(task_vectors) if site in vector]
        signs = torch.stack([task_vectors[i][site].dense().sign().flatten().float() for i in members])
        place = torch.tensor(members)
        for part in signs.split(_CHUNK, dim=1):
            agree[place[:, None], place] += (part @ part.T).double()
            both[place[:, None], place] += (part.abs() @ part.abs().T).double()
    return (both - agree) / 2 / both.clamp_min(1)


def _check(task_vectors: Sequence[TaskVector]) -> None:
    if not task_vectors:
        raise FusionError("give at least one task vector", got=0)
    shapes: dict[str, tuple[int, ...]] = {}
    for vector in task_vectors:
        for site, update in vector.items():
            shape = tuple(update.shape)
            if shapes.setdefault(site, shape) != shape:
                raise FusionError(
                    f"two task vectors give it shapes {shapes[site]} and {shape}",
                    where=site,
                    fix="compare adapters of one base model",
                )
