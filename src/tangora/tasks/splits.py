"""Choose rows by a hash of seed and row number: the same rows on every machine and version."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Hashable, Sequence

__all__ = ["cut", "cut_groups", "sample"]


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


def cut_groups(
    groups: Sequence[int], fraction: float, seed: int, classes: Sequence[Hashable] | None = None, *, salt: str = "test"
) -> tuple[list[int], list[int]]:
    """Split rows into two sets, both in order, so that rows of one group are in one set.

    Groups are taken in the order of a hash, while they fit into the share of their class. So the set that is split off
    has at most about a ``fraction`` of the rows, and less if large groups do not fit.

    Args:
        groups: number of the group of each row; at least two groups.
        fraction: share of the rows that is split off, at least one group and at most all but one.
        seed: of the choice.
        classes: class of each row; if given, each class is split in proportion, and keeps a group if it has two. A
            group is of the class of its first row.
        salt: another one makes another choice.

    >>> kept, off = cut_groups([0, 0, 1, 2, 2, 3], 0.34, seed=0)
    >>> sorted(kept + off), {(0 in off) == (1 in off), (3 in off) == (4 in off)}
    ([0, 1, 2, 3, 4, 5], {True})
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    of_class: dict[Hashable, list[list[int]]] = {}
    for rows in members.values():
        of_class.setdefault(None if classes is None else classes[rows[0]], []).append(rows)
    sizes = [sum(map(len, of)) for of in of_class.values()]
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    off: set[int] = set()
    for of, quota in zip(of_class.values(), _quotas(sizes, count, leave=1), strict=True):
        order = sorted((_hash(f"{salt}:{seed}", rows[0]), rows) for rows in of)
        off.update(_fitting([rows for _, rows in order], quota))
    if not off:  # every group is larger than its share
        off.update(min((len(rows), _hash(f"{salt}:{seed}", rows[0]), rows) for rows in members.values())[2])
    return [row for row in range(len(groups)) if row not in off], sorted(off)


def _fitting(groups: Sequence[Sequence[int]], quota: int) -> list[int]:
    """Return the rows of groups that fit into a quota, in order; at least one group is left out."""
    chosen: list[int] = []
    taken = 0
    for rows in groups:
        if len(chosen) + len(rows) <= quota and taken < len(groups) - 1:
            chosen += rows
            taken += 1
    return chosen


def _hash(salt: str, row: int) -> bytes:
    return hashlib.sha256(f"{salt}:{row}".encode()).digest()


def sample(n: int, count: int, seed: int, classes: Sequence[Hashable] | None = None) -> list[int]:
    """Sample at most ``count`` of the rows 0..n-1, in order; each class in proportion if ``classes`` is given.

    >>> len(sample(100, 10, seed=0)), sample(3, 10, seed=0)
    (10, [0, 1, 2])
    """
    if count >= n:
        return list(range(n))
    return sorted(_choose(n, count, f"limit:{seed}", classes))


def _choose(n: int, count: int, salt: str, classes: Sequence[Hashable] | None, leave: int = 0) -> list[int]:
    order = sorted(range(n), key=lambda row: _hash(salt, row))
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
