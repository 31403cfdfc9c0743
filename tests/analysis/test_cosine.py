from __future__ import annotations

import pytest
import torch

from tangora.analysis import cosine, cosine_matrix, sign_conflict
from tangora.errors import FusionError
from tangora.task_vector import Dense, LowRank, TaskVector


def vectors(count: int = 4, seed: int = 0) -> list[TaskVector]:
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


@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_sign_conflict_equals_that_of_dense_vectors(monkeypatch, chunk):
    monkeypatch.setattr(cosine, "_CHUNK", chunk)
    made = vectors()
    flat = dense(made)
    matrix = sign_conflict(made)
    for i in range(4):
        for j in range(4):
            both = (flat[i] != 0) & (flat[j] != 0)
            expected = ((flat[i] * flat[j])[both] < 0).double().mean()
            assert matrix[i, j] == pytest.approx(expected.item(), abs=1e-12)


def test_sign_conflict_of_vectors_without_a_common_site_is_zero():
    made = [TaskVector({"a": Dense(torch.ones(3))}), TaskVector({"b": Dense(-torch.ones(3))})]
    assert sign_conflict(made).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("measure", [cosine_matrix, sign_conflict])
def test_bad_input(measure):
    with pytest.raises(FusionError, match="at least one"):
        measure([])
    with pytest.raises(FusionError, match=r"\(3,\) and \(4,\) at layer"):
        measure([TaskVector({"layer": Dense(torch.ones(3))}), TaskVector({"layer": Dense(torch.ones(4))})])
