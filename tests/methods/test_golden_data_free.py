"""Fusion rules without data, on matrices small enough to follow by hand, in float64 as in `test_golden_matrix`."""

from __future__ import annotations

import math

import pytest
import torch
from small_updates import check, low_rank

from tangora.errors import ArgumentError
from tangora.methods import average, cart, do_merging, pcb, robust_merge, task_arithmetic, wudi
from tangora.methods.pcb import _softmax

EVEN = torch.ones(2, 1, 1, dtype=torch.float64)


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


# --- CART


def test_cart() -> None:
    # The mean is diag(2, 2), the differences ±diag(2, −1). Half of their two directions is the first: ±2 e₁e₁ᵀ.
    deltas = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 3.0]]], dtype=torch.float64)
    check(cart(deltas, weights=torch.tensor([1.0, 0.5]).reshape(2, 1, 1), share=0.5), [3.0, 0.0], [0.0, 2.0])
    # all of them: 2 + 2 − 0.5·2 and 2 − 1 + 0.5·1
    check(cart(deltas, weights=torch.tensor([1.0, 0.5]).reshape(2, 1, 1), share=1.0), [3.0, 0.0], [0.0, 1.5])


def test_cart_without_a_cut_or_without_weights_is_the_average() -> None:
    deltas, ones = low_rank(3, 6, 5, 2), torch.ones(3, 1, 1, dtype=torch.float64)
    expected = average(deltas, weights=ones)
    torch.testing.assert_close(cart(deltas, weights=ones, share=1.0), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(cart(deltas, weights=0 * ones), expected, rtol=0, atol=1e-11)
    assert float((cart(deltas, weights=ones) - expected).abs().max()) > 0.1


def test_cart_cuts_differences_of_low_rank() -> None:
    # a difference of three tasks of rank 2 has rank 6: 0.08 · 6, rounded up, is 1; by min(out, in) it would be 2
    deltas = low_rank(3, 20, 24, 2)
    added = cart(deltas, weights=torch.ones(3, 1, 1, dtype=torch.float64)) - deltas.mean(0)
    assert int(torch.linalg.matrix_rank(added, rtol=1e-9)) == 3


# --- DO-Merging


def test_do_merging() -> None:
    # First row: lengths 6 and 2, directions at 0° and 60°, which turn apart to −15° and 75°. Their sum has the length
    # √2 at 30°; the mean length is 4. Second row: of the first task alone, as it is.
    deltas = torch.tensor([[[6.0, 0.0], [0.0, 5.0]], [[1.0, math.sqrt(3)], [0.0, 0.0]]], dtype=torch.float64)
    check(do_merging(deltas, weights=EVEN), [4 * math.cos(math.pi / 6), 2.0], [0.0, 5.0])
    # λ = (1, 0): 4/√2 at −15°
    only = do_merging(deltas, weights=torch.tensor([1.0, 0.0]).reshape(2, 1, 1))
    angle, length = -math.pi / 12, 4 / math.sqrt(2)
    check(only, [length * math.cos(angle), length * math.sin(angle)], [0.0, 5.0])


def test_do_merging_of_equal_and_of_opposite_updates() -> None:
    delta = low_rank(1, 6, 5, 2)
    equal = do_merging(delta.expand(3, 6, 5), weights=torch.ones(3, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(equal, delta[0], rtol=0, atol=1e-11)
    opposite = do_merging(torch.cat([delta, -delta]), weights=EVEN)
    torch.testing.assert_close(opposite, torch.zeros(6, 5, dtype=torch.float64), rtol=0, atol=1e-11)


def test_do_merging_has_rows_of_the_mean_length_whatever_the_strengths() -> None:
    deltas, ones = low_rank(3, 6, 9, 4), torch.ones(3, 1, 1, dtype=torch.float64)
    fused = do_merging(deltas, weights=ones)
    torch.testing.assert_close(fused.norm(dim=1), deltas.norm(dim=2).mean(0), rtol=0, atol=1e-11)
    scales = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64).reshape(3, 1, 1)
    scaled = do_merging(deltas * scales, weights=ones)
    unit, other = fused / fused.norm(dim=1, keepdim=True), scaled / scaled.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, other, rtol=0, atol=1e-11)


def test_do_merging_passes_over_an_update_of_zero_and_keeps_the_rank() -> None:
    deltas = low_rank(2, 12, 16, 2)
    fused = do_merging(deltas, weights=EVEN)
    assert int(torch.linalg.matrix_rank(fused, rtol=1e-9)) == 4
    with_zero = torch.cat([deltas, torch.zeros(1, 12, 16, dtype=torch.float64)])
    ones = torch.ones(3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(do_merging(with_zero, weights=ones), fused, rtol=0, atol=1e-11)


# --- RobustMerge


def test_robust_merge() -> None:
    # ν₁ = 5 · (1, 0)(0.6, 0.8): B = √5 (1, 0), A = √5 (0.6, 0.8). Half of the entries: √5 and √5 · 0.8; the direction
    # had 1.4 and keeps 0.8 of √5, 7/4. ν₂ = 2 e₂e₂ᵀ loses nothing: 1. Divided by their mean, 11/8: 14/11 and 8/11.
    deltas = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    check(robust_merge(deltas, weights=EVEN, density=0.5), [0.0, 4 * 14 / 11], [0.0, 2 * 8 / 11])
    check(robust_merge(deltas, weights=EVEN, density=1.0), [3.0, 4.0], [0.0, 2.0])


def test_robust_merge_does_not_depend_on_the_signs_of_singular_vectors() -> None:
    deltas, ones = low_rank(3, 8, 7, 2), torch.ones(3, 1, 1, dtype=torch.float64)
    turned = robust_merge(-deltas, weights=ones, density=0.4)
    torch.testing.assert_close(-turned, robust_merge(deltas, weights=ones, density=0.4), rtol=0, atol=1e-11)


def test_robust_merge_of_an_update_of_zero_and_of_directions_that_vanish() -> None:
    deltas = torch.cat([low_rank(2, 5, 6, 2), torch.zeros(1, 5, 6, dtype=torch.float64)])
    ones = torch.ones(3, 1, 1, dtype=torch.float64)
    expected = robust_merge(deltas[:2], weights=EVEN)
    torch.testing.assert_close(robust_merge(deltas, weights=ones), expected, rtol=0, atol=1e-11)
    # of diag(4, 1) a density of 0.25 keeps one entry of each factor, and the second direction is gone
    strong = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)).expand(2, 2, 2)
    check(robust_merge(strong, weights=EVEN, density=0.25), [8.0, 0.0], [0.0, 0.0])


# --- PCB-Merging


def test_pcb() -> None:
    # ν₁ = (2, 1), ν₂ = (2, −2). Strength: N(ν₁²) = (1, 1/4), N(ν₂²) = (1, 1), times T = 2.
    # Agreement of 1: softmax(1, 1/4) + softmax(N(4, −2)) = softmax(1, −1/2); of 2: softmax(1, −1/2) + softmax(1, 1).
    e = math.exp
    first, own = e(1) / (e(1) + e(1 / 4)), e(2) / (e(2) + e(1 / 2))
    shared = e(1) / (e(1) + e(-1 / 2))
    one = [own * (first + shared), (1 - own) * (1 - first + 1 - shared)]
    two = [0.5 * (shared + 0.5), 0.5 * (1 - shared + 0.5)]
    expected = [(one[i] * x + 0.5 * two[i] * y) / (one[i] + two[i]) for i, (x, y) in enumerate([(2, 2), (1, -2)])]
    deltas = torch.tensor([[2.0, 1.0], [2.0, -2.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    check(pcb(deltas, weights=weights, density=1.0)[None], expected)
    # half of the entries: both keep the first, and nobody the second
    check(pcb(deltas, weights=weights, density=0.5)[None], [expected[0], 0.0])


def test_pcb_of_equal_updates_is_one_of_them_and_zero_takes_no_part() -> None:
    deltas = low_rank(1, 6, 5, 2).expand(3, 6, 5)
    ones = torch.ones(3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(pcb(deltas, weights=ones, density=1.0), deltas[0], rtol=0, atol=1e-11)
    with_zero = torch.cat([deltas[:1], torch.zeros(1, 6, 5, dtype=torch.float64)])
    torch.testing.assert_close(pcb(with_zero, weights=EVEN, density=1.0), deltas[0], rtol=0, atol=1e-11)


def test_the_exponents_of_pcb_which_grow_with_the_tasks_do_not_overflow() -> None:
    # e⁹⁰⁰ is beyond float64; of two entries the softmax times two is (2, 0)
    assert _softmax(torch.tensor([900.0, 0.0], dtype=torch.float64)).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("method", [cart, do_merging, robust_merge, wudi])
def test_one_task_is_itself(method: object) -> None:
    delta = low_rank(1, 6, 5, 2)
    options = {"density": 1.0} if method is robust_merge else {}
    found = method(delta, weights=torch.ones(1, 1, 1, dtype=torch.float64), **options)  # type: ignore[operator]
    torch.testing.assert_close(found, delta[0], rtol=0, atol=1e-11)
