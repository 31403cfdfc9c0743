"""Singular values, least ranks and what smaller ones leave, against LAPACK; the range finder against the optimum."""

from __future__ import annotations

import pytest
import torch

from tangora.errors import ArgumentError
from tangora.updates import range_finder
from tangora.updates.range_finder import leading, leading_within
from tangora.updates.ranks import check_bound, error_at, least_rank, spectra_of, spectrum
from tangora.updates.update import Dense, LowRank


def matrix(out: int, inside: int, noise: float = 0.01, rank: int = 12) -> torch.Tensor:
    g = torch.Generator().manual_seed(out)
    low = torch.randn(out, rank, generator=g) * torch.exp2(-torch.arange(rank) / 2.0)
    return low @ torch.randn(rank, inside, generator=g) + noise * torch.randn(out, inside, generator=g)


def left(values: torch.Tensor, rank: int) -> float:
    return float(values[rank:].norm() / values.norm())


def test_the_spectrum_of_factors_is_that_of_their_product():
    g = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(30, 6, generator=g), torch.randn(6, 20, generator=g), 0.5)
    exact = torch.linalg.svdvals(update.b.double() @ update.a.double() * 0.5)[:6]
    torch.testing.assert_close(spectrum(update), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(spectrum(Dense(update.dense()))[:6], exact, rtol=1e-5, atol=0)
    twice = LowRank(torch.cat([update.b, update.b], 1), torch.cat([update.a, update.a]), 0.25)
    torch.testing.assert_close(spectrum(twice)[:6], exact, rtol=1e-12, atol=0)
    assert float(spectrum(twice)[6:].max()) < 1e-6 * float(exact[0])
    assert spectra_of({"a": update, "a.bias": Dense(torch.ones(3))}).keys() == {"a"}


def test_the_least_rank_is_the_first_within_the_bound():
    values = torch.linalg.svdvals(matrix(40, 30).double())
    for bound in (0.9, 0.3, 0.05, 0.01, 1e-6):
        assert least_rank(values, bound) == next(r for r in range(1, 31) if left(values, r) <= bound)
    square = float(values.square().sum())
    assert least_rank(values[:3], 0.9, square) == least_rank(values, 0.9)
    assert least_rank(values[:3], 1e-6, square) == 4
    assert least_rank(torch.zeros(3), 0.1) == 1


def test_the_error_of_a_rank_over_all_sites():
    whole = {"a": matrix(20, 10).double(), "b": matrix(9, 14).double()}
    spectra = {site: torch.linalg.svdvals(m) for site, m in whole.items()}
    total = sum(float(m.square().sum()) for m in whole.values())
    lost = sum(float(s[2:].square().sum()) for s in spectra.values())
    assert error_at(spectra, 2) == pytest.approx((lost / total) ** 0.5, rel=1e-12)
    # What was cut before counts too.
    cut = {site: s[:4] for site, s in spectra.items()}
    before = {site: left(s, 4) for site, s in spectra.items()}
    assert error_at(cut, 2, before) == pytest.approx((lost / total) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("shape", [(300, 40), (400, 640), (640, 400)], ids=str)
@pytest.mark.parametrize("rank", [1, 12, 60, 200])
def test_leading_triplets_state_their_error_and_are_nearly_the_best(shape, rank):
    d = matrix(*shape)
    found, values = leading(d, rank), torch.linalg.svdvals(d.double())
    kept = min(rank, *shape)
    direct = float((d.double() - (found.u[:, :kept] * found.s[:kept]) @ found.vh[:kept]).norm() / d.double().norm())
    assert found.error(kept) == pytest.approx(direct, abs=1e-7)  # the square root of float64's rounding
    # Random vectors may find a little less, never more; a refinement stops where it gains 0.1 % of what is left.
    assert left(values, kept) - 1e-7 <= found.error(kept) <= left(values, kept) * 1.01 + 1e-7
    identity = torch.eye(found.s.numel(), dtype=torch.float64)
    torch.testing.assert_close(found.u.T @ found.u, identity, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bound", [0.5, 0.1, 0.06, 0.01])
@pytest.mark.parametrize("shape", [(50, 60), (400, 640)], ids=str)
def test_triplets_within_a_bound(shape, bound):
    d = matrix(*shape)
    found, values = leading_within(d, bound), torch.linalg.svdvals(d.double())
    rank, least = least_rank(found.s, bound, found.square), least_rank(values, bound)
    assert least <= rank <= least * 1.05 + 1
    assert found.error(rank) <= bound


def test_unlucky_vectors_make_a_larger_error_and_say_so(monkeypatch):
    d = matrix(400, 640)
    monkeypatch.setattr(range_finder, "_STEPS", 0)
    found, values = leading(d, 12), torch.linalg.svdvals(d.double())
    direct = float((d.double() - (found.u[:, :12] * found.s[:12]) @ found.vh[:12]).norm() / d.double().norm())
    assert direct > left(values, 12) * 1.01
    assert found.error(12) == pytest.approx(direct, abs=1e-7)


@pytest.mark.parametrize("bound", [0, -1, 1, 2, 1e-9, "much", True, float("nan")])
def test_bounds_that_mean_nothing(bound):
    with pytest.raises(ArgumentError, match=r"between 0\.000001 and 1"):
        check_bound(bound, "error")
