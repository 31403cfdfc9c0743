"""The rows of a task that a search may use."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tangora.adapters.initial import seed_of

__all__ = ["pick"]


def pick(targets: Sequence[object], count: int | None, seed: int, task: str) -> list[int]:
    """Return ``count`` rows with about the same class proportions as all rows.

    Fewer rows are a prefix of more, so 32 contain the 8. Row j of a class of n, in a random order, gets the position
    ``(j + u) / n`` with one random u in [0, 1) per class; the first ``count`` of all rows are taken.

    Args:
        targets: one per row, of any kind of answers; rows with equal ones are of a class.
        count: number of rows; None, or more than there are, for all.
        seed: determines the order and u, together with the task's name.
        task: the name.

    >>> sorted([0, 0, 0, 0, 0, 0, 1, 1][i] for i in pick([0, 0, 0, 0, 0, 0, 1, 1], 4, 0, "task"))
    [0, 0, 0, 1]
    """
    generator = torch.Generator().manual_seed(seed_of("rows", seed, task))
    classes: dict[object, list[int]] = {}
    for row, target in enumerate(targets):
        classes.setdefault(tuple(target) if isinstance(target, list) else target, []).append(row)
    positions = []
    for target in sorted(classes, key=repr):
        rows = classes[target]
        offset = float(torch.rand((), generator=generator))
        order = torch.randperm(len(rows), generator=generator).tolist()
        positions += [((j + offset) / len(rows), rows[i]) for j, i in enumerate(order)]
    return [row for _, row in sorted(positions)][:count]
