"""The sets of tasks to fuse: all subsets of the configured sizes, or a seeded sample of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tangora.config.recipe import SubsetConfig

__all__ = ["choose_subsets"]


def choose_subsets(tasks: Sequence[str], config: SubsetConfig, seed: int) -> list[tuple[str, ...]]:
    """Return subsets of ``tasks``, each in the order of ``tasks``, sorted by size and then by positions.

    The sample of one size does not depend on the other sizes.

    >>> from tangora.config.recipe import SubsetConfig
    >>> choose_subsets(["a", "b", "c"], SubsetConfig(sizes=[2, 3]), seed=0)
    [('a', 'b'), ('a', 'c'), ('b', 'c'), ('a', 'b', 'c')]
    """
    sizes = range(2, len(tasks) + 1) if isinstance(config.sizes, str) else sorted(set(config.sizes))
    chosen: list[tuple[str, ...]] = []
    for size in sizes:
        subsets = list(itertools.combinations(tasks, size))
        if not isinstance(config.per_size, str) and config.per_size < math.comb(len(tasks), size):
            picked = random.Random(f"{seed}:{size}").sample(range(len(subsets)), config.per_size)
            subsets = [subsets[i] for i in sorted(picked)]
        chosen += subsets
    return chosen
