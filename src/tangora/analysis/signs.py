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

_BLOCK = 1 << 20  # entries of a task that are dense at a time: sums of that many ±1 are exact in float32


def sign_conflict(task_vectors: Sequence[TaskVector], *, weighted: bool = False) -> Float[Tensor, "tasks tasks"]:
    """Share of entries where two task vectors have opposite signs, of those where neither is zero.

    With D the entries e where ``ν_t[e] ν_u[e] < 0``: unweighted ``|D| / |{e : ν_t[e] ν_u[e] ≠ 0}|``; weighted by
    magnitude ``Σ_{e ∈ D} |ν_t[e] ν_u[e]| / Σ_e |ν_t[e] ν_u[e]|``. The conflicts are those that TIES resolves
    (arXiv:2306.01708, sections 3 and 4.1) by electing a sign per entry.

    Half is chance. Entries near zero have signs by accident, so read the weighted share beside the other: TIES has
    most to offer where it is high. It is the part of the cosine that size cannot explain,
    ``(1 - ⟨ν_t, ν_u⟩ / ⟨|ν_t|, |ν_u|⟩) / 2``.

    Low-rank updates become dense a block of rows at a time, never whole.

    Args:
        task_vectors: one per task; a site that only one has is zero in the other.
        weighted: count an entry by the product of the two magnitudes.

    Returns:
        A symmetric float64 matrix with values in [0, 1] and a zero diagonal; 0 where no entry is shared.

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
        place = torch.tensor(members)
        for block in _blocks([task_vectors[i][site] for i in members]):
            values = block.double() if weighted else block.sign()
            total[place[:, None], place] += (values @ values.T).double()
            both[place[:, None], place] += (values.abs() @ values.abs().T).double()
    return torch.where(both > 0, (both - total) / 2 / both, 0.0)


def _blocks(updates: Sequence[Update]) -> Iterator[Float[Tensor, "tasks entries"]]:
    """Some rows of every task's update at a time, flattened."""
    shape = updates[0].shape
    step = max(1, _BLOCK // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield torch.stack([update.rows(start, start + step).flatten().float() for update in updates])
