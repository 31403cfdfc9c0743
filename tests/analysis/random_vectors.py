"""Random task vectors, and the same as rows of one dense matrix."""

from __future__ import annotations

import torch

from tangora.updates.task_vector import Dense, LowRank, TaskVector


def vectors(count: int = 4, seed: int = 0) -> list[TaskVector]:
    """Low-rank and dense sites, of which the second vector lacks one."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    made = []
    for index in range(count):
        updates = {
            "q": LowRank(normal(6, 2), normal(2, 5), 2.0),
            "v": LowRank(normal(4, 3), normal(3, 7), 0.5),
            "norm": Dense(normal(9)),
        }
        if index == 1:
            del updates["v"]
        made.append(TaskVector(updates))
    return made


def dense(made: list[TaskVector]) -> torch.Tensor:
    sizes = {"q": 30, "v": 28, "norm": 9}
    rows = [torch.cat([v[s].dense().flatten() if s in v else torch.zeros(n) for s, n in sizes.items()]) for v in made]
    return torch.stack(rows).double()
