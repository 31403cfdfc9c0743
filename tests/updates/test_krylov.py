"""The block iteration against the whole SVD: spectra that converge at once, slowly, or not before the space is full."""

from __future__ import annotations

import math

import pytest
import torch

from tangora.updates.krylov import leading_triplets
from tangora.updates.truncation import truncate_matrix


def spectrum(shape, values, seed=0):
    """Return a matrix with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, len(values), generator=generator).double())[0] for n in shape)
    return (u * torch.as_tensor(values, dtype=torch.float64)) @ v.T


SPECTRA = {
    "falling": [1 / (1 + i) for i in range(390)],
    "steep": [10.0**-i for i in range(12)],
    "equal": [1.0] * 390,
    "two clusters": [2.0] * 3 + [1.0] * 387,
    "fewer than wanted": [3.0, 1.0],
}


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_values_vectors_and_error(name, dtype, scale):
    values = SPECTRA[name]
    matrix = (scale * spectrum((420, 400), values)).to(dtype)
    u, s, vh, error = truncate_matrix(matrix, 4)
    true = torch.linalg.svdvals(matrix.double())
    eps = torch.finfo(dtype).eps
    # Residuals of 1e-5 relative to an eigenvalue leave its root exact to their square over the gap, or to 1e-5 of it.
    torch.testing.assert_close(s, true[:4], rtol=1e-5, atol=float(100 * eps * true[0]))
    tail = math.sqrt(float(true[4:].square().sum() / true.square().sum()))
    # The square of the error is a difference in float64; vectors in dtype leave eps of a matrix that they span.
    assert error == pytest.approx(tail, rel=1e-5, abs=8 * eps + 4 * torch.finfo(torch.float64).eps ** 0.5)
    exact = torch.linalg.vector_norm(matrix.double() - (u * s) @ vh) / torch.linalg.vector_norm(matrix.double())
    assert error == pytest.approx(float(exact), rel=1e-6, abs=1e-7), "the stated error is that of what is returned"
    for basis in (u.T @ u, vh @ vh.T):
        torch.testing.assert_close(basis, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(420, 400), (400, 420)])
def test_a_matrix_without_a_gap_gives_the_vectors_of_its_svd(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    u, s, vh = leading_triplets(matrix, 6)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    wanted = (left[:, :6] * values[:6]) @ right[:6]
    assert float(torch.linalg.vector_norm((u * s) @ vh - wanted) / torch.linalg.vector_norm(wanted)) < 1e-3


def test_the_same_bits_every_time_and_nearly_the_same_for_another_seed():
    matrix = torch.randn(400, 500, generator=torch.Generator().manual_seed(4))
    one, again, other = (leading_triplets(matrix, 4, seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))
    torch.testing.assert_close(one[1], other[1], rtol=1e-6, atol=0)


def test_a_space_that_becomes_the_whole_before_it_converges_is_left_to_the_svd(monkeypatch):
    monkeypatch.setattr("tangora.updates.krylov._PRECISION", 0.0)
    monkeypatch.setattr("tangora.updates.krylov._NOISE", 0.0)
    matrix = torch.randn(390, 400, generator=torch.Generator().manual_seed(6))
    assert leading_triplets(matrix, 3) is None
    assert truncate_matrix(matrix, 3)[3] > 0
