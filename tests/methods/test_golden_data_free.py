"""Fusion rules without data, on matrices small enough to follow by hand, in float64 as in `test_golden_matrix`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.methods import task_arithmetic, wudi

EVEN = torch.ones(2, 1, 1, dtype=torch.float64)


def check(result: Tensor, *rows: list[float]) -> None:
    torch.testing.assert_close(result, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-11)


def low_rank(tasks: int, out: int, inside: int, rank: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    b, a = (torch.randn(tasks, *s, generator=g, dtype=torch.float64) for s in ((out, rank), (rank, inside)))
    return b @ a


# --- WUDI


def test_wudi() -> None:
    # ‖ν₁‖² = 9, ‖ν₂‖² = 5, so G₁ = diag(1, 0) and G₂ = diag(1/5, 4/5). First column: (3·1 + 1·1/5) / (6/5) = 8/3;
    # second: of task two alone, 2.
    deltas = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    check(wudi(deltas, weights=EVEN, ridge=0.0), [8 / 3, 0.0], [0.0, 2.0])
    # λ multiplies the targets: (0.5·3 − 1/5) / (6/5) = 13/12, and −2
    check(wudi(deltas, weights=torch.tensor([0.5, -1.0]).reshape(2, 1, 1), ridge=0.0), [13 / 12, 0.0], [0.0, -2.0])
    # The largest eigenvalue of ΣG is 6/5: ρ = 6/5 with a ridge of 1. First column: (3·1 + 1/5 + 6/5·4) / (12/5) = 10/3;
    # second: (2·4/5 + 6/5·2) / (4/5 + 6/5) = 2.
    check(wudi(deltas, weights=EVEN, ridge=1.0), [10 / 3, 0.0], [0.0, 2.0])


def test_wudi_of_tasks_with_rows_of_their_own_is_their_sum() -> None:
    deltas = torch.zeros(2, 3, 4, dtype=torch.float64)
    deltas[0, :, :2], deltas[1, :, 2:] = low_rank(1, 3, 2, 2)[0], low_rank(1, 3, 2, 2, seed=1)[0]
    torch.testing.assert_close(wudi(deltas, weights=EVEN, ridge=0.0), deltas.sum(0), rtol=0, atol=1e-11)


def test_wudi_of_equal_updates_is_one_of_them_and_of_a_large_ridge_the_sum() -> None:
    deltas = low_rank(1, 6, 5, 2).expand(3, 6, 5)
    ones = torch.ones(3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(wudi(deltas, weights=ones, ridge=0.0), deltas[0], rtol=0, atol=1e-11)
    total = task_arithmetic(deltas, weights=ones)
    torch.testing.assert_close(wudi(deltas, weights=ones, ridge=1e9), total, rtol=0, atol=1e-7)


def test_wudi_is_where_gradient_descent_ends() -> None:
    # From the sum, as the reference starts: every gradient is in the joint row space, so descent ends at the minimum
    # that differs least from the sum, which is in that space itself. The step is 1 / the largest curvature; after n
    # steps what is left is (1 − 1/κ)ⁿ, with κ under 200 here: e⁻²⁵ after 5000.
    deltas = low_rank(3, 8, 12, 2)
    norms = deltas.flatten(1).norm(dim=1).reshape(3, 1, 1)
    gram = (deltas.mT @ deltas / norms**2).sum(0)
    curvature = torch.linalg.eigvalsh(gram)
    assert float(curvature[-1] / curvature[-6]) < 200
    assert float(curvature[-7]) < 1e-12
    found = deltas.sum(0)
    for _ in range(5000):
        found = found - (((found - deltas) @ deltas.mT @ deltas) / norms**2).sum(0) / curvature[-1]
    ones = torch.ones(3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(wudi(deltas, weights=ones, ridge=0.0), found, rtol=0, atol=1e-8)


def test_wudi_adds_nothing_outside_the_tasks_rows_and_columns() -> None:
    deltas = low_rank(3, 30, 40, 2)
    found = wudi(deltas, weights=torch.ones(3, 1, 1, dtype=torch.float64))
    assert int(torch.linalg.matrix_rank(found, rtol=1e-9)) == 6


def test_wudi_passes_over_an_update_of_zero() -> None:
    deltas = torch.cat([low_rank(2, 5, 6, 2), torch.zeros(1, 5, 6, dtype=torch.float64)])
    with_zero = wudi(deltas, weights=torch.ones(3, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(with_zero, wudi(deltas[:2], weights=EVEN), rtol=0, atol=1e-11)


@pytest.mark.parametrize("ridge", [-0.1, float("nan"), True])
def test_wudi_refuses_a_negative_ridge(ridge: float) -> None:
    with pytest.raises(ArgumentError, match="wudi: ridge must be"):
        wudi(low_rank(2, 3, 3, 1), weights=EVEN, ridge=ridge)
