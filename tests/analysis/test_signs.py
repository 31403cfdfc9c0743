from __future__ import annotations

import numpy as np
import pytest
import torch
from random_vectors import dense, vectors

from tangora.analysis import cosine_matrix, sign_conflict, signs
from tangora.updates.task_vector import Dense, LowRank, TaskVector


def oracle(x: np.ndarray, y: np.ndarray, *, weighted: bool) -> float:
    weight = np.abs(x * y) if weighted else (x * y != 0).astype(float)
    return float(weight[x * y < 0].sum() / weight.sum())


@pytest.mark.parametrize("block", [1 << 20, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_that_of_dense_vectors(monkeypatch, block, weighted):
    monkeypatch.setattr(signs, "_BLOCK", block)
    made = vectors()
    flat = dense(made).numpy()
    matrix = sign_conflict(made, weighted=weighted)
    for i in range(4):
        for j in range(4):
            assert matrix[i, j] == pytest.approx(oracle(flat[i], flat[j], weighted=weighted), abs=1e-6)


def test_a_case_by_hand():
    # ΔW = [[2, -4], [-1, 2]] against [[1, 1], [1, 1]]: two of four entries conflict, with 4 + 1 of the weight 9
    one = TaskVector({"layer": LowRank(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0, -2.0]]))})
    other = TaskVector({"layer": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    assert sign_conflict([one, other])[0, 1] == 0.5
    assert sign_conflict([one, other], weighted=True)[0, 1] == pytest.approx(5 / 9)


def test_the_weighted_share_is_what_size_cannot_explain_of_the_cosine():
    one, other = vectors(1, seed=0)[0], vectors(1, seed=1)[0]
    flat = dense([one, other])
    sizes = torch.nn.functional.cosine_similarity(flat[0].abs(), flat[1].abs(), dim=0)
    expected = (1 - cosine_matrix([one, other])[0, 1] / sizes) / 2
    assert sign_conflict([one, other], weighted=True)[0, 1] == pytest.approx(expected.item(), abs=1e-6)


def test_vectors_without_a_common_site_do_not_conflict():
    made = [TaskVector({"a": Dense(torch.ones(3))}), TaskVector({"b": Dense(-torch.ones(3))})]
    assert sign_conflict(made).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_tiny_updates_weigh_too():
    made = [TaskVector({"a": Dense(1e-30 * torch.tensor([1.0, sign]))}) for sign in (1.0, -1.0)]
    assert sign_conflict(made, weighted=True)[0, 1] == pytest.approx(0.5)
