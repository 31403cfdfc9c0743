"""Choose rows by a hash of seed and row number: the same rows on every machine and version."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Hashable, Sequence

__all__ = ["cut", "sample"]


def cut(n: int, fraction: float, seed: int, classes: Sequence[Hashable] | None = None) -> tuple[list[int], list[int]]:
    """Split the rows 0..n-1 into two sets, both in order: the kept ones, and a ``fraction`` that is split off.

    Args:
        n: number of rows, at least 2.
        fraction: share that is split off, at least one row and at most all but one.
        seed: of the choice of rows.
        classes: class of each row; if given, each class is split in proportion, and keeps a row if it has two.

    >>> kept, held_out = cut(10, 0.2, seed=0, classes=[0] * 5 + [1] * 5)
    >>> len(kept), len(held_out), len({i // 5 for i in held_out})
    (8, 2, 2)
    """
    count = min(max(1, round(fraction * n)), n - 1)
    chosen = set(_choose(n, count, f"validation:{seed}", classes, leave=1))
    return [i for i in range(n) if i not in chosen], sorted(chosen)


def sample(n: int, count: int, seed: int, classes: Sequence[Hashable] | None = None) -> list[int]:
    """Sample at most ``count`` of the rows 0..n-1, in order; each class in proportion if ``classes`` is given.

    >>> len(sample(100, 10, seed=0)), sample(3, 10, seed=0)
    (10, [0, 1, 2])
    """
    if count >= n:
        return list(range(n))
    return sorted(_choose(n, count, f"limit:{seed}", classes))


def _choose(n: int, count: int, salt: str, classes: Sequence[Hashable] | None, leave: int = 0) -> list[int]:
    order = sorted(range(n), key=lambda row: hashlib.sha256(f"{salt}:{row}".encode()).digest())
    if classes is None:
        return order[:count]
    members: dict[Hashable, list[int]] = {}
    for row in range(n):
        members.setdefault(classes[row], [])
    for row in order:
        members[classes[row]].append(row)
    quotas = _quotas([len(rows) for rows in members.values()], count, leave)
    return [row for rows, quota in zip(members.values(), quotas, strict=True) for row in rows[:quota]]


def _quotas(sizes: list[int], count: int, leave: int) -> list[int]:
    """Divide ``count`` in proportion to ``sizes``, by largest remainder; each class gets one if there are enough."""
    most = [max(size - leave, 0) for size in sizes]
    if sum(most) < count:  # every class is down to its last row: take those too
        most = sizes
    first = 1 if count >= len(sizes) else 0
    quotas = [min(first, limit) for limit in most]
    exact = [count * size / sum(sizes) for size in sizes]
    owed = [(quota - share, i) for i, (quota, share) in enumerate(zip(quotas, exact, strict=True))]
    heapq.heapify(owed)
    for _ in range(count - sum(quotas)):
        while quotas[owed[0][1]] == most[owed[0][1]]:
            heapq.heappop(owed)
        surplus, i = owed[0]
        quotas[i] += 1
        heapq.heapreplace(owed, (surplus + 1, i))
    return quotas
