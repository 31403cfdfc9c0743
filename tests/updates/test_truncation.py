"""Truncation against NumPy's SVD of the whole matrix, on every route and where a route must hand over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tangora.updates import truncation
from tangora.updates.task_vector import Dense, LowRank
from tangora.updates.truncation import truncate_factors, truncate_matrix


def factors(out, rank, width, decay=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    b, a = (torch.randn(shape, generator=generator) for shape in ((out, rank), (rank, width)))
    scale = decay ** torch.arange(rank)
    return (b * scale).to(dtype), a.to(dtype)


def oracle(matrix, rank):
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    tail = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()) if s.any() else 0.0
    return (u[:, :rank] * s[:rank]) @ vh[:rank], tail


def check(matrix, parts, rank, tolerance):
    u, s, vh, error = parts
    wanted, tail = oracle(matrix, rank)
    assert error == pytest.approx(tail, rel=1e-5, abs=1e-7)
    scale = np.linalg.norm(matrix.double().numpy()) or 1.0
    assert np.linalg.norm(((u * s) @ vh).numpy() - wanted) / scale < tolerance


@pytest.mark.parametrize("shape", [(40, 12, 30), (9, 12, 30), (40, 12, 5), (64, 3, 64)])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_factors(shape, decay, rank):
    b, a = factors(*shape, decay)
    check(b.double() @ a.double(), truncate_factors(b, a, rank), rank, 1e-8)


def test_a_spectrum_too_steep_for_gram_matrices_goes_through_qr(monkeypatch):
    used = []
    by_qr = truncation._by_qr
    monkeypatch.setattr(truncation, "_by_qr", lambda *given: used.append(1) or by_qr(*given))
    b, a = factors(30, 8, 20, decay=1e-3)
    check(b.double() @ a.double(), truncate_factors(b, a, 2), 2, 1e-10)
    assert not used
    check(b.double() @ a.double(), truncate_factors(b, a, 4), 4, 1e-10)
    assert used


def test_adapters_given_twice_make_singular_gram_matrices():
    b, a = factors(30, 4, 20)
    twice = torch.cat([b, b], 1), torch.cat([a, -0.25 * a], 0)
    check(0.75 * (b.double() @ a.double()), truncate_factors(*twice, 3), 3, 1e-8)
    check(0.75 * (b.double() @ a.double()), truncate_factors(*twice, 6), 6, 1e-7)


def test_nothing_stays_nothing():
    update, error = LowRank(torch.zeros(6, 4), torch.randn(4, 5)).compress(2)
    assert error == 0.0
    assert not update.dense().any()
    assert Dense(torch.zeros(400, 390)).compress(2)[0].dense().abs().max() == 0
    cancelled = LowRank(torch.ones(6, 2), torch.tensor([[1.0], [-1.0]]).expand(2, 5).clone())
    assert cancelled.compress(1)[0].dense().abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(400, 420), (420, 400), (50, 60)])
def test_matrices(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    check(matrix, truncate_matrix(matrix, 5), 5, 1e-3 if dtype == torch.bfloat16 else 1e-4)


def test_large_matrices_repeat_to_the_bit_and_ask_for_no_whole_svd(monkeypatch):
    matrix = torch.randn(400, 500, generator=torch.Generator().manual_seed(4))
    first = truncate_matrix(matrix, 4)
    monkeypatch.setattr(truncation, "whole_svd", None)
    for one, other in zip(first[:3], truncate_matrix(matrix, 4)[:3], strict=True):
        assert torch.equal(one, other)


def test_scaling_and_dtype_of_an_update():
    b, a = factors(30, 6, 20, dtype=torch.bfloat16)
    update, error = LowRank(b, a, 2.5).compress(4)
    assert update.b.dtype == update.a.dtype == torch.bfloat16
    wanted, tail = oracle(2.5 * (b.double() @ a.double()), 4)
    assert error == pytest.approx(tail, rel=1e-5)
    assert np.linalg.norm(update.dense().double().numpy() - wanted) / np.linalg.norm(wanted) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decomposition_that_does_not_converge_is_done_by_qr_iteration(monkeypatch, dtype):
    def fails(*args, **options):
        raise torch.linalg.LinAlgError("linalg.svd: the algorithm failed to converge")

    matrix = factors(9, 6, 7)[0].to(dtype)
    expected = torch.linalg.svd(matrix, full_matrices=False)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    u, s, vh = truncation.thin_svd(matrix)
    assert (u.dtype, u.shape, vh.shape) == (dtype, expected[0].shape, expected[2].shape)
    assert torch.allclose(s, expected[1], rtol=1e-5)
    assert torch.allclose(u * s @ vh, matrix, atol=1e-5)
