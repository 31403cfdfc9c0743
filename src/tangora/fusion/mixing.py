"""Fusions whose result is a sum with coefficients that follow from inner products of the updates at each tensor.

The coefficients need no dense tensor, only r x r products of factors. With them the fusion is a sum: low-rank in
memory, streamed row by row into a checkpoint, and compared with the adapters entry by entry after it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tangora.fusion.computation import Computation
from tangora.methods import get
from tangora.updates.task_vector import LowRank, Update

__all__ = ["as_sum", "mixed"]


def mixed(computation: Computation, site: str, updates: Sequence[Update | None]) -> list[float] | None:
    """Return the coefficient of every task's update at one tensor.

    None if the method is another, or an update is not low-rank: then dense tensors are as good.

    Args:
        computation: the method and its weights.
        site: whose weights are taken.
        updates: one per task; None stands for zero.
    """
    mixing, factors = computation.method.mixing, [None if update is None else update.factors() for update in updates]
    if mixing is None or sum(f is not None for f in factors) < sum(update is not None for update in updates):
        return None
    read = [None if f is None else LowRank(f.b, f.a, f.scaling) for f in factors]  # once: it may read a file
    gram = [[0.0] * len(read) for _ in read]
    for i, first in enumerate(read):
        for j, second in enumerate(read[: i + 1]):
            if first is not None and second is not None:
                gram[i][j] = gram[j][i] = first.dot(second)
    return list(mixing(gram, computation.row(site), **computation.parameters))


def as_sum(
    computation: Computation, vectors: Sequence[Mapping[str, Update]], sites: Iterable[str]
) -> Computation | None:
    """Return the fusion as a sum with coefficients by site, under the method's name; None if it is no such sum.

    Args:
        computation: the fusion.
        vectors: per task, site -> update.
        sites: all that are fused.
    """
    table: dict[str, list[float]] = {}
    for site in sites:
        if (row := mixed(computation, site, [vector.get(site) for vector in vectors])) is None:
            return None
        table[site] = row
    plain_sum = replace(get("task_arithmetic"), name=computation.method.name)
    return Computation(plain_sum, table, {}, computation.seed, computation.fingerprints)
