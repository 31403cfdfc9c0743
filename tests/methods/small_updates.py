"""Small updates in float64, and a comparison with results by hand."""

from __future__ import annotations

import torch
from torch import Tensor


def check(result: Tensor, *rows: list[float]) -> None:
    """Compare with rows that were computed by hand."""
    torch.testing.assert_close(result, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-11)


def low_rank(tasks: int, out: int, inside: int, rank: int, seed: int = 0) -> Tensor:
    """Return the updates of some tasks, each of a rank: [tasks, out, inside]."""
    g = torch.Generator().manual_seed(seed)
    b, a = (torch.randn(tasks, *s, generator=g, dtype=torch.float64) for s in ((out, rank), (rank, inside)))
    return b @ a
