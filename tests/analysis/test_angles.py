from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_vectors import vectors

from tangora.analysis import principal_angles, subspace_overlap
from tangora.errors import ArgumentError, FusionError
from tangora.updates.task_vector import Dense, LowRank, TaskVector


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_angles_that_are_known():
    # columns: span(e1, e2) against span(cos 30° e1 + sin 30° e3, e4); rows: span(e1, e2) against span(e2, e3)
    turned = torch.zeros(5, 2)
    turned[0, 0], turned[2, 0], turned[3, 1] = math.cos(math.pi / 6), 0.5, 1.0
    one = LowRank(torch.eye(5)[:, :2], torch.eye(4)[:2], scaling=-3.0)
    other = LowRank(turned, torch.eye(4)[1:3])
    angles = principal_angles(one, other)
    # The angles are found in float64; the cosine as float32 holds it is that of an angle 2e-6 degrees away.
    torch.testing.assert_close(torch.rad2deg(angles.columns), torch.tensor([30.0, 90.0]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.rad2deg(angles.rows), torch.tensor([0.0, 90.0]).double(), atol=1e-5, rtol=0)


def test_one_shared_a_gives_one_row_space():
    a = normal(3, 9, seed=0)
    angles = principal_angles(LowRank(normal(7, 3, seed=1), a), LowRank(normal(7, 3, seed=2), a, scaling=2.0))
    assert angles.rows.max() < 1e-6
    assert angles.columns.max() > 0.1


@pytest.mark.parametrize("rank", [None, 2])
def test_angles_are_those_of_scipy_and_do_not_depend_on_the_factoring(rank):
    from scipy.linalg import subspace_angles

    one = LowRank(normal(8, 3, seed=0).double(), normal(3, 6, seed=1).double())
    other = LowRank(normal(8, 2, seed=2).double(), normal(2, 6, seed=3).double())
    turn = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 5.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    again = LowRank(one.b @ turn, torch.linalg.inv(turn) @ one.a)
    found = principal_angles(again, other, rank)
    spans = []
    for update in (one, other):
        u, _, vh = np.linalg.svd(update.dense().numpy())
        spans.append((u[:, : rank or update.rank], vh[: rank or update.rank].T))
    for name, mine, theirs in zip(("columns", "rows"), *spans, strict=True):
        expected = np.sort(subspace_angles(mine, theirs))
        # Subspaces turn by eps over the gap between singular values, a tenth here, and times the turn's condition, 10.
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, rtol=0, atol=1e-10)


def test_a_dense_update_is_its_leading_directions():
    low = LowRank(normal(6, 1, seed=0), normal(1, 5, seed=1))
    noisy = Dense(low.dense() + 1e-4 * normal(6, 5, seed=2))
    assert principal_angles(low, noisy, rank=1).columns.max() < 1e-3
    assert principal_angles(noisy, Dense(normal(6, 5, seed=3))).rows.max() < 1e-6  # full rank: all of the space


def test_directions_that_only_rounding_has_do_not_count():
    b = normal(6, 1, seed=0)
    doubled = LowRank(torch.cat([b, b], 1), torch.cat([torch.eye(1, 5), torch.eye(1, 5)], 0))  # rank 1 in width 2
    assert len(principal_angles(doubled, doubled).columns) == 1
    zero = LowRank(torch.zeros(6, 2), normal(2, 5, seed=1))
    assert len(principal_angles(doubled, zero).columns) == 0


def test_overlap_is_the_mean_of_squared_cosines_over_matrix_sites():
    made = vectors(3)
    found = subspace_overlap(made)
    for i, j in ((0, 1), (0, 2)):
        shared = [s for s in ("q", "v") if s in made[i] and s in made[j]]
        angles = [principal_angles(made[i][s], made[j][s]) for s in shared]
        assert found.columns[i, j] == pytest.approx(np.mean([a.columns.cos().square().mean() for a in angles]))
        assert found.rows[i, j] == pytest.approx(np.mean([a.rows.cos().square().mean() for a in angles]))
    torch.testing.assert_close(found.columns.diagonal(), torch.ones(3).double())
    assert found.chance_columns == pytest.approx((2 / 6 + 3 / 4) / 2)
    assert found.chance_rows == pytest.approx((2 / 5 + 3 / 7) / 2)


def test_chance_is_what_random_subspaces_have():
    made = [TaskVector({"layer": LowRank(normal(40, 4, seed=s), normal(4, 30, seed=s + 99))}) for s in range(30)]
    found = subspace_overlap(made)
    others = ~torch.eye(30, dtype=torch.bool)
    assert found.columns[others].mean().item() == pytest.approx(found.chance_columns, rel=0.05)
    assert found.rows[others].mean().item() == pytest.approx(found.chance_rows, rel=0.05)


def test_vectors_of_no_matrix_overlap_nowhere():
    found = subspace_overlap([TaskVector({"norm": Dense(torch.ones(3))})] * 2)
    assert found.columns.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    zero = TaskVector({"layer": LowRank(torch.zeros(4, 1), torch.ones(1, 4))})
    assert subspace_overlap([zero, zero]).rows.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_bad_input():
    matrix = Dense(torch.eye(3))
    with pytest.raises(ArgumentError, match=r"only a matrix has subspaces, got \(3,\)"):
        principal_angles(Dense(torch.ones(3)), Dense(torch.ones(3)))
    with pytest.raises(ArgumentError, match="rank must be at least 1, got 0"):
        principal_angles(matrix, matrix, rank=0)
    with pytest.raises(FusionError, match=r"shapes \(3, 3\) and \(2, 2\)"):
        principal_angles(matrix, Dense(torch.eye(2)))
