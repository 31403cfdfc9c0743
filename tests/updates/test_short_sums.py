"""Sums that are cut at once, against the sum that is formed and then cut, and against NumPy's SVD of the matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangora.errors import ArgumentError, FusionError
from tangora.updates import truncation
from tangora.updates.short_sums import combine_to_rank
from tangora.updates.update import Dense, LowRank, combine

EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def update(seed, out, rank, inside, dtype=torch.float32, norm=1.0, true_rank=None, scaling=1.0):
    """Random factors; of a smaller true rank if it is given."""
    generator = torch.Generator().manual_seed(seed)
    kept = rank if true_rank is None else true_rank
    mix = torch.randn(kept, rank, generator=generator)
    b, a = torch.randn(out, kept, generator=generator) @ mix, torch.randn(rank, inside, generator=generator)
    return LowRank((b * norm).to(dtype), a.to(dtype), scaling)


def matrix(updates, coefficients):
    """The sum in float64, from the numbers that the factors have."""
    parts = ((u.b.double() @ u.a.double()) * (u.scaling * c) for u, c in zip(updates, coefficients, strict=True))
    return sum(parts).numpy()


def best(whole, rank):
    """The norm of the whole, and that of what the best approximation leaves out."""
    s = np.linalg.svd(whole, compute_uv=False)
    return np.linalg.norm(s), np.linalg.norm(s[rank:])


@st.composite
def sums(draw):
    dtype = draw(st.sampled_from(list(EPS)))
    out, inside = draw(st.integers(3, 24)), draw(st.integers(3, 24))
    count = draw(st.integers(2, 5))
    updates = []
    for seed in range(count):
        rank = draw(st.integers(1, 6))
        norm = draw(st.sampled_from([0.0, 2.0**-12, 1.0, 2.0**6]))
        true_rank = draw(st.sampled_from([None, 1]))
        scaling = draw(st.sampled_from([1.0, 0.5, 2.0]))
        updates.append(update(100 * draw(st.integers(0, 9)) + seed, out, rank, inside, dtype, norm, true_rank, scaling))
    if draw(st.booleans()):  # one adapter twice, or two of a shared A
        last = updates[-1]
        other = last.b if draw(st.booleans()) else torch.roll(last.b, 1, 0)
        updates.append(LowRank(other, last.a, last.scaling))
    coefficients = [draw(st.sampled_from([1.0, -1.0, 0.25, 0.0])) for _ in updates]
    return updates, coefficients, draw(st.integers(1, 8))


@settings(max_examples=150, deadline=None)
@given(sums())
def test_nothing_of_the_rank_is_closer_and_the_error_is_stated(case):
    """Of one rank, none is closer to the sum than the best, and this one is as close up to what rounding adds.

    Rounding, in eps of the dtype: a coefficient times b, and the sum of factors that share the other, add twice eps
    of the norms of b and a, times each other. Rounding the result's two factors adds twice eps of the sum of its at
    most 8 singular values, which is at most √8 times their norm: less than six times. In float64, a triplet from the
    Gram matrices has an error of eps s₁² / sᵢ, which is at most 1e5 eps s₁ since they are used down to sᵢ = 1e-5 s₁,
    and there are at most 8.
    """
    updates, coefficients, rank = case
    cut, error = combine_to_rank(updates, coefficients, rank)
    assert cut.factors().rank <= max(rank, 1)
    dtype = updates[0].b.dtype
    assert cut.b.dtype == dtype
    whole = matrix(updates, coefficients)
    total, left_out = best(whole, rank)
    sizes = (
        u.b.double().norm() * u.a.double().norm() * abs(u.scaling * c)
        for u, c in zip(updates, coefficients, strict=True)
    )
    slack = (4 * EPS[dtype] + 1e-12) * (float(sum(sizes)) + total) + 8e5 * EPS[torch.float64] * total
    result = (cut.b.double() @ cut.a.double() * cut.scaling).numpy()
    distance = np.linalg.norm(whole - result)
    assert distance <= left_out + slack
    if total > 0:
        assert abs(error - left_out / total) <= slack / total + 1e-7
    else:
        assert not result.any()


@settings(max_examples=60, deadline=None)
@given(sums())
def test_it_is_the_sum_cut_afterwards(case):
    updates, coefficients, rank = case
    cut, error = combine_to_rank(updates, coefficients, rank)
    other, wanted = combine(updates, coefficients).compress(rank)
    assert (cut.shape, cut.factors().rank, cut.b.dtype) == (other.shape, other.factors().rank, other.b.dtype)
    assert error == wanted
    assert torch.equal(cut.b, other.b)
    assert torch.equal(cut.a, other.a)


@pytest.mark.parametrize("decay", [1.0, 0.3, 1e-2, 1e-4])
def test_gram_matrices_and_qr_agree(decay, monkeypatch):
    """With both routes in float64, the kept parts differ by no more than eps₆₄ · (s₁ / sᵣ)², which is below 1e-6."""
    parts = [update(seed, 60, 4, 50, norm=decay**seed) for seed in range(4)]
    pairs = [(p.b, p.a) for p in parts]
    fast = truncation.truncate_sum(pairs, 5, 0.5)
    monkeypatch.setattr(truncation, "_GRAM_FLOOR", float("inf"))
    slow = truncation.truncate_sum(pairs, 5, 0.5)
    product = lambda found: found[0] * found[1] @ found[2]  # noqa: E731
    assert float((product(fast) - product(slow)).norm() / slow[1].norm()) < 1e-6
    assert torch.allclose(fast[1], slow[1], rtol=1e-6, atol=0)
    assert fast[3] == pytest.approx(slow[3], abs=1e-7)


def test_memory_that_is_used_again_is_nobodys_result():
    first = truncation.truncate_sum([(torch.eye(6, 3), torch.eye(3, 5))], 2)
    kept = [part.clone() for part in first[:3]]
    truncation.truncate_sum([(torch.randn(6, 3), torch.randn(3, 5))], 2)
    assert all(torch.equal(one, other) for one, other in zip(first[:3], kept, strict=True))
    steep = [
        (torch.diag(torch.tensor([1.0, 1e-4, 1e-8, 1e-12], dtype=torch.float64)), torch.eye(4, dtype=torch.float64))
    ]
    first = truncation.truncate_sum(steep, 4)  # through QR
    kept = [part.clone() for part in first[:3]]
    truncation.truncate_sum([(torch.randn(4, 4), torch.randn(4, 4))], 2)
    assert all(torch.equal(one, other) for one, other in zip(first[:3], kept, strict=True))


def test_the_factors_that_are_given_stay_as_they_are():
    pair = torch.randn(6, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    kept = [part.clone() for part in pair]
    truncation.truncate_sum([pair], 2, 3.0)
    assert torch.equal(pair[0], kept[0])
    assert torch.equal(pair[1], kept[1])


def test_a_sum_larger_than_the_memory_that_is_kept(monkeypatch):
    monkeypatch.setattr(truncation, "_KEPT", 4)
    one = update(0, 9, 3, 8)
    cut, error = combine_to_rank([one, update(1, 9, 3, 8)], [1.0, 1.0], 2)
    monkeypatch.undo()
    same, wanted = combine_to_rank([one, update(1, 9, 3, 8)], [1.0, 1.0], 2)
    assert torch.equal(cut.dense(), same.dense())
    assert error == wanted


def test_dense_updates_and_wrong_input():
    low = update(0, 6, 2, 5)
    mixed, _ = combine_to_rank([low, Dense(torch.ones(6, 5))], [1.0, 1.0], 1)
    assert mixed.factors().rank == 1
    with pytest.raises(FusionError, match="one shape"):
        combine_to_rank([low, update(1, 6, 2, 4)], [1.0, 1.0], 1)
    with pytest.raises(ArgumentError, match="one coefficient per update"):
        combine_to_rank([low, low], [1.0], 1)
    with pytest.raises(ArgumentError, match="rank must be at least 1"):
        combine_to_rank([low, low], [1.0, 1.0], 0)
