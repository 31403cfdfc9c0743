"""Methods that see an update as a matrix, on matrices small enough to follow by hand.

In float64, where no processor's rounding comes near the bound of `check`: decompositions of these matrices are off by
some 1e-15, and nothing here magnifies that a thousandfold.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.methods import iso_c, iso_cts, knots, svd, ties_per_tensor, tsv_m

EVEN = torch.ones(2, 1, 1, dtype=torch.float64)
# Their sum has singular values 3, along (1, 1), and 1, along (1, −1).
PAIR = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)


def check(result: Tensor, *rows: list[float]) -> None:
    torch.testing.assert_close(result, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-11)


def diagonal(*values: list[float]) -> Tensor:
    return torch.stack([torch.diag(torch.tensor(v, dtype=torch.float64)) for v in values])


def test_svd() -> None:
    check(svd(PAIR, weights=EVEN, components=1), [1.5, 1.5], [1.5, 1.5])
    check(svd(PAIR, weights=EVEN, components=2), [2.0, 1.0], [1.0, 2.0])


def test_svd_weights_first() -> None:
    # 0.5·2·I − 2·(exchange): singular values 3 along (1, −1) and 1 along (1, 1)
    weights = torch.tensor([0.5, -2.0]).reshape(2, 1, 1)
    check(svd(PAIR, weights=weights, components=1), [1.5, -1.5], [-1.5, 1.5])


@pytest.mark.parametrize("components", [0, -1, 1.5, True])
def test_svd_refuses_no_rank(components: int) -> None:
    with pytest.raises(ArgumentError, match="svd: components must be"):
        svd(PAIR, weights=EVEN, components=components)


def test_iso_c() -> None:
    # the sum is symmetric and positive: U Vᵀ = I, and the mean of 3 and 1 is 2
    check(iso_c(PAIR, weights=EVEN), [2.0, 0.0], [0.0, 2.0])


def test_iso_c_of_low_rank_lifts_no_direction_that_no_task_has() -> None:
    check(iso_c(diagonal([3.0, 0.0, 0.0], [0.0, 1.0, 0.0]), weights=EVEN), [2.0, 0, 0], [0, 2.0, 0], [0, 0, 0.0])


def test_tsv_m() -> None:
    # Left vectors at 0° and 45° turn apart by the same angle until they are orthogonal: −22.5° and 67.5°.
    # The right ones, e₁ and e₂, are orthogonal already. One triplet of each task is kept.
    r, c, s = math.sqrt(0.5), math.cos(math.pi / 8), math.sin(math.pi / 8)
    deltas = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, r], [0.0, r]]], dtype=torch.float64)
    check(tsv_m(deltas, weights=EVEN), [2 * c, s], [-2 * s, c])
    check(tsv_m(deltas, weights=torch.tensor([0.5, 3.0]).reshape(2, 1, 1)), [c, 3 * s], [-s, 3 * c])


def test_tsv_m_keeps_a_share_of_the_directions() -> None:
    # four directions, two tasks: two each
    deltas = diagonal([5.0, 4.0, 3.0, 2.0], [0.0, 0.1, 7.0, 6.0])
    check(tsv_m(deltas, weights=EVEN), *torch.diag(torch.tensor([5.0, 4.0, 7.0, 6.0])).tolist())


def test_tsv_m_of_one_direction_in_two_tasks() -> None:
    # two equal columns have no orthonormal neighbour in their span: each becomes 1/√2 of the direction, left and right
    check(tsv_m(diagonal([2.0, 0.0], [4.0, 0.0]), weights=EVEN), [3.0, 0.0], [0.0, 0.0])


def test_iso_cts() -> None:
    # Sum diag(8, 2, 1). int(0.4·3) = 1 direction is common, 8 e₁e₁ᵀ; it leaves 2 e₂e₂ᵀ and 1 e₃e₃ᵀ. The mean is 11/3.
    found = iso_cts(diagonal([4.0, 2.0, 0.0], [4.0, 0.0, 1.0]), weights=EVEN, common=0.4)
    check(found, *torch.diag(torch.full((3,), 11 / 3, dtype=torch.float64)).tolist())


def test_iso_cts_with_a_direction_that_the_sum_lost() -> None:
    # Sum diag(8, 4, 1, 1): the common 2 directions leave 3 e₃ and −2 e₃ … and 1 e₄: task one's own is e₃ with 3, the
    # other's is e₃ with −2, so that e₄, which the sum has, is left out. Left [e₃, e₃], right [e₃, −e₃] beside e₁, e₂:
    # equal columns share their direction, ±e₃/√2, and cancel. The mean of 3, 2, 8, 4 is 4.25.
    deltas = diagonal([4.0, 2.0, 3.0, 0.5], [4.0, 2.0, -2.0, 0.5])
    expected = torch.diag(torch.tensor([4.25, 4.25, 0.0, 0.0]))
    check(iso_cts(deltas, weights=EVEN, common=0.5), *expected.tolist())


def test_iso_cts_of_only_common_directions_is_iso_c() -> None:
    torch.testing.assert_close(iso_cts(PAIR, weights=EVEN, common=1.0), iso_c(PAIR, weights=EVEN))


@pytest.mark.parametrize("common", [-0.1, 1.1, 80, float("nan")])
def test_iso_cts_refuses_what_is_no_fraction(common: float) -> None:
    with pytest.raises(ArgumentError, match=r"iso_cts: common must be in \[0, 1\]"):
        iso_cts(PAIR, weights=EVEN, common=common)


def test_knots() -> None:
    # The row (2, 0 | 4, 4) has norm 6: V₁ = (1/3, 0), V₂ = (2/3, 2/3). Entry 0: (0.5/3 + 0.25·2/3)/2 = 1/6;
    # entry 1, of the second task alone: 0.25·2/3 = 1/6. Times 6.
    deltas = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[4.0, 4.0], [0.0, 0.0]]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.25]).reshape(2, 1, 1)
    check(knots(deltas, weights=weights, density=1.0), [1.0, 1.0], [0.0, 0.0])


def test_knots_elects_in_shared_directions() -> None:
    # u = (1, 1)/√2 is all that the columns of both have: rows (2, −4) of one and (1, 6) of the other in that direction
    # (times 1/√2). Second entry: −4 against 6, the sum is positive, 6 stays.
    deltas = torch.tensor([[[2.0, -4.0], [2.0, -4.0]], [[1.0, 6.0], [1.0, 6.0]]], dtype=torch.float64)
    check(knots(deltas, weights=EVEN, density=1.0), [1.5, 6.0], [1.5, 6.0])
    # and with half of the entries: −4 of the first, 6 of the second
    check(knots(deltas, weights=EVEN, density=0.5), [0.0, 6.0], [0.0, 6.0])


def test_knots_of_vectors_is_ties() -> None:
    deltas, weights = torch.tensor([[4.0, -1.0, 2.0], [-1.0, -6.0, 2.0]]), torch.tensor([[0.5], [0.25]])
    expected = ties_per_tensor(deltas, weights=weights, density=0.5)
    assert torch.equal(knots(deltas, weights=weights, density=0.5), expected)


@pytest.mark.parametrize("method", [tsv_m, iso_c, iso_cts])
def test_vectors_are_averaged(method: object) -> None:
    deltas, weights = torch.tensor([[4.0, -1.0], [2.0, 2.0]]), torch.tensor([[0.5], [2.0]])
    assert method(deltas, weights=weights).tolist() == [3.0, 1.75]  # type: ignore[operator]


def test_svd_sums_vectors() -> None:
    assert svd(torch.tensor([[4.0], [2.0]]), weights=torch.tensor([[0.5], [2.0]])).tolist() == [6.0]
