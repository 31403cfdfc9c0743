"""The sets of tasks to fuse: all subsets of the configured sizes, or a seeded sample of them."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tangora.config.recipe import SubsetConfig

__all__ = ["choose_subsets", "count_subsets"]


def count_subsets(tasks: int, config: SubsetConfig) -> int:
    """Return the number of subsets that `choose_subsets` returns, without making them.

    >>> from tangora.config.recipe import SubsetConfig
    >>> count_subsets(20, SubsetConfig()), count_subsets(20, SubsetConfig(per_size=10))
    (1048555, 181)
    """
    counts = (math.comb(tasks, size) for size in _sizes(tasks, config))
    return sum(count if isinstance(config.per_size, str) else min(count, config.per_size) for count in counts)


def choose_subsets(tasks: Sequence[str], config: SubsetConfig, seed: int) -> list[tuple[str, ...]]:
    """Return subsets of ``tasks``, each in the order of ``tasks``, sorted by size and then by positions.

    The sample of one size does not depend on the other sizes.

    >>> from tangora.config.recipe import SubsetConfig
    >>> choose_subsets(["a", "b", "c"], SubsetConfig(sizes=[2, 3]), seed=0)
    [('a', 'b'), ('a', 'c'), ('b', 'c'), ('a', 'b', 'c')]
    """
    chosen: list[tuple[str, ...]] = []
    for size in _sizes(len(tasks), config):
        count = math.comb(len(tasks), size)
        if isinstance(config.per_size, str) or config.per_size >= count:
            chosen += itertools.combinations(tasks, size)
        else:
            chosen += [_nth(tasks, size, i) for i in _sample(f"{seed}:{size}", count, config.per_size)]
    return chosen


def _sizes(tasks: int, config: SubsetConfig) -> Sequence[int]:
    return range(2, tasks + 1) if isinstance(config.sizes, str) else sorted(set(config.sizes))


def _sample(seed: str, count: int, wanted: int) -> list[int]:
    """Return some of the numbers below ``count``, sorted."""
    drawn = random.Random(seed)
    if count <= sys.maxsize:
        return sorted(drawn.sample(range(count), wanted))
    found: set[int] = set()  # a range has no length above this
    while len(found) < wanted:
        found.add(drawn.randrange(count))
    return sorted(found)


def _nth(tasks: Sequence[str], size: int, place: int) -> tuple[str, ...]:
    """Return the subset at a place of `itertools.combinations`, without those before it."""
    chosen: list[str] = []
    for i, task in enumerate(tasks):
        if len(chosen) == size:
            break
        with_it = math.comb(len(tasks) - i - 1, size - len(chosen) - 1)
        if place < with_it:
            chosen.append(task)
        else:
            place -= with_it
    return tuple(chosen)
