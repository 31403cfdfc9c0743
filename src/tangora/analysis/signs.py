"""Do these adapters pull entries of a weight apart? Sign conflict of task vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.analysis._vectors import check, sites
from tangora.updates.task_vector import TaskVector, Update

__all__ = ["sign_conflict"]

_BLOCK = 1 << 20  # dense entries of a task at a time: sums of that many ±1 are exact in float32


def sign_conflict(task_vectors: Sequence[TaskVector], *, weighted: bool = False) -> Float[Tensor, "tasks tasks"]:
    """Return the fraction of entries with opposite signs in two task vectors, among those that are non-zero in both.

    With D the entries e with ``ν_t[e] ν_u[e] < 0``: unweighted ``|D| / |{e : ν_t[e] ν_u[e] ≠ 0}|``; weighted by
    magnitude ``Σ_{e ∈ D} |ν_t[e] ν_u[e]| / Σ_e |ν_t[e] ν_u[e]|``. The conflicts are those that TIES resolves
    (arXiv:2306.01708, sections 3 and 4.1) by electing a sign per entry.

    The value for random signs is a half. Entries near zero have random signs, so compare the weighted fraction with the
    other: TIES helps most if it is high. It is the part of the cosine that magnitudes do not explain,
    ``(1 - ⟨ν_t, ν_u⟩ / ⟨|ν_t|, |ν_u|⟩) / 2``.

    Low-rank updates become dense one block of rows at a time.

    Args:
        task_vectors: one per task; a site that only one has is zero in the other.
        weighted: count an entry by the product of the two magnitudes.

    Returns:
        A symmetric float64 matrix with values in [0, 1] and a zero diagonal; 0 if no entry is shared.

    Raises:
        ArgumentError: there is no task vector.
        FusionError: two task vectors have different shapes at one site.

    >>> from tangora.updates.task_vector import Dense, TaskVector
    >>> a = TaskVector({"layer": Dense(torch.tensor([1.0, 2.0, -1.0, 0.0]))})
    >>> b = TaskVector({"layer": Dense(torch.tensor([1.0, -2.0, -3.0, 5.0]))})
    >>> round(sign_conflict([a, b])[0, 1].item(), 3), sign_conflict([a, b], weighted=True)[0, 1].item()
    (0.333, 0.5)
    """
    check(task_vectors)
    size = len(task_vectors)
    total, both = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for site, members in sites(task_vectors).items():
        rows = torch.tensor(members)
        for block in _blocks([task_vectors[i][site] for i in members]):
            values = block.double() if weighted else block.sign()
            total[rows[:, None], rows] += (values @ values.T).double()
            both[rows[:, None], rows] += (values.abs() @ values.abs().T).double()
    return torch.where(both > 0, (both - total) / 2 / both, 0.0)


def _blocks(updates: Sequence[Update]) -> Iterator[Float[Tensor, "tasks entries"]]:
    """Yield blocks of rows of every task's update, flattened."""
    shape = updates[0].shape
    step = max(1, _BLOCK // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield torch.stack([update.rows(start, start + step).flatten().float() for update in updates])
