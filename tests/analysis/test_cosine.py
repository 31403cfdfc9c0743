from __future__ import annotations

import pytest
import torch
from random_vectors import dense, vectors

from tangora.analysis import cosine_matrix, sign_conflict, subspace_overlap
from tangora.errors import ArgumentError, FusionError
from tangora.updates.task_vector import Dense, LowRank, TaskVector


def test_cosine_equals_that_of_dense_vectors():
    made = vectors()
    flat = dense(made)
    flat = flat / flat.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine_matrix(made), flat @ flat.T, atol=1e-6, rtol=0)


def test_cosine_is_symmetric_with_ones_on_the_diagonal():
    matrix = cosine_matrix(vectors())
    assert torch.equal(matrix, matrix.T)
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix.diagonal(), torch.ones(4, dtype=torch.float64))


def test_cosine_does_not_depend_on_the_factoring_or_the_scale():
    made = vectors(2)
    q = made[0]["q"]
    turn = torch.tensor([[2.0, 1.0], [0.0, -3.0]])
    other = TaskVector({**made[0], "q": LowRank(q.b @ turn, torch.linalg.inv(turn) @ q.a, q.scaling)})
    torch.testing.assert_close(cosine_matrix([other * 7, made[1]]), cosine_matrix(made), atol=1e-6, rtol=0)


def test_a_zero_vector_has_no_direction():
    made = vectors(2)
    matrix = cosine_matrix([made[0], made[1] * 0.0])
    assert matrix[1].tolist() == [0.0, 0.0]
    assert matrix[0, 0] == pytest.approx(1.0)


def test_opposite_vectors():
    made = vectors(1)
    assert cosine_matrix([made[0], -made[0]])[0, 1] == pytest.approx(-1.0)
    assert sign_conflict([made[0], -made[0]])[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize("measure", [cosine_matrix, sign_conflict, subspace_overlap])
def test_bad_input(measure):
    with pytest.raises(ArgumentError, match="at least one"):
        measure([])
    with pytest.raises(FusionError, match=r"\(3,\) and \(4,\) at layer"):
        measure([TaskVector({"layer": Dense(torch.ones(3))}), TaskVector({"layer": Dense(torch.ones(4))})])
