"""Each method on numbers small enough to follow by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangora.errors import ArgumentError, FusionError
from tangora.methods import (
    average,
    breadcrumbs,
    consensus,
    dare,
    dare_ties,
    della,
    magnitude_prune,
    model_stock,
    slerp,
    task_arithmetic,
    ties,
    ties_per_tensor,
    ties_sum,
)

#          entry        0     1     2     3     4
DELTAS = torch.tensor([[4.0, -1.0, 2.0, 0.5, -3.0], [-1.0, -6.0, 2.0, 8.0, 3.0]])
WEIGHTS = torch.tensor([[0.5], [0.25]])
UNIFORMS = torch.tensor([[0.1, 0.9, 0.4, 0.5, 0.2], [0.7, 0.3, 0.1, 0.0, 0.49]])


def check(result: Tensor, *expected: float | list[float]) -> None:
    torch.testing.assert_close(result, torch.tensor(expected), rtol=0, atol=1e-6)


def test_average() -> None:
    # (0.5·a + 0.25·b) / 0.75: entry 0 (2 − 0.25)/0.75, 1 (−0.5 − 1.5)/0.75, 2 the same in both, 3 (0.25 + 2)/0.75,
    # 4 (−1.5 + 0.75)/0.75
    check(average(DELTAS, weights=WEIGHTS), 7 / 3, -8 / 3, 2.0, 3.0, -1.0)


def test_task_arithmetic() -> None:
    check(task_arithmetic(DELTAS, weights=WEIGHTS), 1.75, -2.0, 1.5, 2.25, -0.75)


def test_task_arithmetic_forgets() -> None:
    # task 0 added, task 1 taken away
    check(task_arithmetic(DELTAS, weights=torch.tensor([[1.0], [-1.0]])), 5.0, 5.0, 0.0, -7.5, -6.0)


def test_magnitude_prune() -> None:
    # ⌈0.4·5⌉ = 2 entries each: a keeps 4 and −3, b keeps 8 and −6
    check(magnitude_prune(DELTAS, weights=WEIGHTS, density=0.4), 2.0, -1.5, 0.0, 2.0, -1.5)


def test_ties() -> None:
    # ⌈0.6·5⌉ = 3 entries each. a: 4, 2, −3 → [4, 0, 2, 0, −3]. b: 8, −6, 3 → [0, −6, 0, 8, 3].
    # Sums [4, −6, 2, 8, 0]: no sign is elected at 4. One task agrees everywhere else; weight after the election.
    check(ties(DELTAS, weights=WEIGHTS, density=0.6), 2.0, -1.5, 1.0, 2.0, 0.0)


def test_ties_averages_what_agrees() -> None:
    # density 1: sums [3, −7, 4, 8.5, 0]; entry 0 keeps 4 only; the others both, over two
    check(ties(DELTAS, weights=WEIGHTS, density=1.0), 2.0, -1.0, 0.75, 1.125, 0.0)


def test_ties_sum() -> None:
    # Sums [3, −7, 4, 8.5, 0]. Both agree at 1: −0.5 − 1.5, at 2: 1 + 0.5, and at 3: 0.25 + 2; at 0 only a.
    check(ties_sum(DELTAS, weights=WEIGHTS, density=1.0), 2.0, -2.0, 1.5, 2.25, 0.0)


def test_ties_elects_before_it_weights() -> None:
    # weighted first, entry 0 would be 0.4 − 1 < 0 and the answer −1; elected first it is 4·0.1
    check(ties(DELTAS[:, :1], weights=torch.tensor([[0.1], [1.0]]), density=1.0), 0.4)


def test_ties_keeps_all_entries_equal_to_the_last_kept() -> None:
    # ⌈0.25·4⌉ = 1, but two entries share the largest magnitude
    check(ties(torch.tensor([[2.0, -2.0, 1.0, 0.0]]), weights=torch.ones(1, 1), density=0.25), 2.0, -2.0, 0.0, 0.0)


def test_ties_with_more_zeros_than_it_drops() -> None:
    check(ties(torch.tensor([[0.0, 0.0, 3.0, 0.0]]), weights=torch.ones(1, 1), density=0.5), 0.0, 0.0, 3.0, 0.0)


def test_a_zero_ballot_does_not_depend_on_the_order() -> None:
    # Added up in float32, the first order gives −1 and the second 0.
    deltas = torch.tensor([[1e8], [1.0], [-1e8], [-1.0]])
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 0, 1, 2]):
        check(ties(deltas[order], weights=torch.ones(4, 1), density=1.0), 0.0)


def test_ties_per_tensor() -> None:
    # one tensor is the whole model: the same as ties
    check(ties_per_tensor(DELTAS, weights=WEIGHTS, density=0.6), 2.0, -1.5, 1.0, 2.0, 0.0)


def test_global_trim_is_not_per_tensor_trim() -> None:
    """Two sites, one of them ten times as large: a global trim silences the small one."""
    small, large = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])
    weight = torch.ones(1, 1)
    together = ties(torch.cat([small, large], dim=1), weights=weight, density=0.5)
    check(together, 0.0, 0.0, 10.0, 20.0)
    apart = [ties_per_tensor(site, weights=weight, density=0.5) for site in (small, large)]
    check(torch.cat(apart), 0.0, 2.0, 0.0, 20.0)


def test_dare() -> None:
    # density 0.5 keeps a at 0, 2, 4 (0.5 < 0.5 is false at 3) and b at 1 to 4, doubled:
    # a [8, 0, 4, 0, −6], b [0, −12, 4, 16, 6]
    check(dare(DELTAS, weights=WEIGHTS, uniforms=UNIFORMS, density=0.5), 4.0, -3.0, 3.0, 4.0, -1.5)


def test_dare_ties() -> None:
    # the same a and b; sums [8, −12, 8, 16, 0]; entry 2: (0.5·4 + 0.25·4)/2
    check(dare_ties(DELTAS, weights=WEIGHTS, uniforms=UNIFORMS, density=0.5), 4.0, -3.0, 1.5, 4.0, 0.0)


def test_dare_is_task_arithmetic_on_average() -> None:
    deltas = torch.tensor([1.0, -2.0]).reshape(2, 1).expand(2, 40_000)
    uniforms = torch.rand(deltas.shape, generator=torch.Generator().manual_seed(0))
    result = dare(deltas, weights=torch.ones(2, 1), uniforms=uniforms, density=0.25)
    # entries are −2·4, 4 − 8, 4 or 0; standard error √(3·5)/200 ≈ 0.02
    assert sorted(set(result.tolist())) == [-8.0, -4.0, 0.0, 4.0]
    assert abs(float(result.mean()) + 1) < 0.08


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0), (0.1 + 0.2, -0.3)])
def test_average_refuses_weights_that_cancel(weights: tuple[float, float]) -> None:
    with pytest.raises(ArgumentError, match=r"weights must not sum to zero.*task_arithmetic"):
        average(DELTAS, weights=torch.tensor(weights).reshape(2, 1))


def test_average_refuses_weights_that_cancel_at_one_entry() -> None:
    weights = torch.ones(2, 5)
    weights[1, 3] = -1
    with pytest.raises(ArgumentError, match=r"weights must not sum to zero"):
        average(DELTAS, weights=weights)


def test_breadcrumbs() -> None:
    # bottom masks 2 of 5 entries, top 1. a: without 0.5, −1 and without 4: 2 and −3. b: without −1, 2 and 8: −6 and 3
    check(breadcrumbs(DELTAS, weights=WEIGHTS, bottom=0.4, top=0.2), 0.0, -1.5, 1.0, 0.0, -0.75)


def test_breadcrumbs_counts_down() -> None:
    # 0.39·5 = 1.95: one entry is masked; 0.19·5 = 0.95: none
    check(breadcrumbs(DELTAS[:1], weights=torch.ones(1, 1), bottom=0.39, top=0.19), 4.0, -1.0, 2.0, 0.0, -3.0)


def test_breadcrumbs_keeps_what_is_equal() -> None:
    # two of four are masked from below, but the third smallest equals them
    found = breadcrumbs(torch.tensor([[1.0, -1.0, 1.0, 5.0]]), weights=torch.ones(1, 1), bottom=0.5, top=0.0)
    check(found, 1.0, -1.0, 1.0, 5.0)


@pytest.mark.parametrize(("bottom", "top"), [(1.0, 0.0), (-0.1, 0.0), (0.0, 1.0), (0.0, 85)])
def test_breadcrumbs_refuses_what_is_no_fraction(bottom: float, top: float) -> None:
    with pytest.raises(ArgumentError, match=r"breadcrumbs: (bottom|top) must be in \[0, 1\)"):
        breadcrumbs(DELTAS, weights=WEIGHTS, bottom=bottom, top=top)


def test_breadcrumbs_refuses_to_leave_nothing() -> None:
    with pytest.raises(ArgumentError, match=r"bottom \+ top must be less than 1, got 'bottom 0.6, top 0.4'"):
        breadcrumbs(DELTAS, weights=WEIGHTS, bottom=0.6, top=0.4)


def test_della() -> None:
    # An entry of rank r stays with probability 0.7 − 0.1·r. a in order 4, −3, 2, −1, 0.5: stay 4 (0.1 < 0.7),
    # −3 (0.2 < 0.6), 2 (0.4 < 0.5), and become 4/0.7, −5, 4. b in order 8, −6, 3, 2, −1: all but −1 stay, and
    # become 8/0.7, −10, 6, 5. Sums [5.7, −10, 9, 11.4, 1]: both agree at 2 alone.
    result = della(DELTAS, weights=WEIGHTS, uniforms=UNIFORMS, density=0.5, window=0.5)
    check(result, 2 / 0.7, -2.5, 1.625, 2 / 0.7, 1.5)


def test_della_without_a_window_is_dare_ties() -> None:
    options = {"weights": WEIGHTS, "uniforms": UNIFORMS, "density": 0.5}
    assert torch.equal(della(DELTAS, **options, window=0.0), dare_ties(DELTAS, **options))


def test_della_ranks_in_rows() -> None:
    # 0.75 of the larger and 0.25 of the smaller entry of each row stay
    deltas = torch.tensor([[[1.0, 2.0], [40.0, 30.0]]])
    result = della(deltas, weights=torch.ones(1, 1, 1), uniforms=torch.full((1, 2, 2), 0.5), density=0.5, window=1.0)
    check(result, [0.0, 2 / 0.75], [40 / 0.75, 0.0])


@pytest.mark.parametrize(("density", "window"), [(0.9, 0.3), (0.1, 0.3), (1.0, 0.1)])
def test_della_refuses_probabilities_outside_of_0_and_1(density: float, window: float) -> None:
    with pytest.raises(ArgumentError, match=r"density ± window/2 must stay in \[0, 1\].*at fuse.window.*may be 0"):
        della(DELTAS, weights=WEIGHTS, uniforms=UNIFORMS, density=density, window=window)


def test_slerp() -> None:
    # at a right angle a third of the way: sin 60° of the first, sin 30° of the second
    deltas, weights = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.5], [2.0]])
    check(slerp(deltas, weights=weights, position=1 / 3), 3**0.5 / 2, 3.0)
    check(slerp(deltas, weights=weights, position=0.0), 1.0, 0.0)
    check(slerp(deltas, weights=weights, position=1.0), 0.0, 6.0)


@pytest.mark.parametrize("other", [(2.0, 4.0), (-1.0, -2.0), (0.0, 0.0)])
def test_slerp_where_there_is_no_arc_is_the_straight_line(other: tuple[float, float]) -> None:
    result = slerp(torch.tensor([(1.0, 2.0), other]), weights=torch.ones(2, 1), position=0.25)
    check(result, 0.75 + 0.25 * other[0], 1.5 + 0.25 * other[1])


@pytest.mark.parametrize("count", [1, 3])
def test_slerp_is_for_two(count: int) -> None:
    with pytest.raises(FusionError, match=f"slerp: it is between exactly two updates, got {count}"):
        slerp(torch.ones(count, 4), weights=torch.ones(count, 1))


def test_model_stock() -> None:
    # 45°: t = 2·0.7071/1.7071 = 0.8284 of the mean (1, 0.5)
    t = 2 * 0.5**0.5 / (1 + 0.5**0.5)
    check(model_stock(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), weights=torch.ones(2, 1)), t, t / 2)


def test_model_stock_of_three() -> None:
    # cosines 0, 1/√2, 1/√2 in the mean √2/3; weights 3, 0, 0 leave t·(1, 0)
    cosine = 2**0.5 / 3
    deltas = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = model_stock(deltas, weights=torch.tensor([[3.0], [0.0], [0.0]]))
    check(found, 3 * cosine / (1 + 2 * cosine), 0.0)


@pytest.mark.parametrize("other", [(0.0, 3.0), (-2.0, 1.0), (0.0, 0.0)])
def test_model_stock_keeps_nothing_of_updates_that_do_not_agree(other: tuple[float, float]) -> None:
    check(model_stock(torch.tensor([(1.0, 0.0), other]), weights=torch.ones(2, 1)), 0.0, 0.0)


def test_consensus() -> None:
    # Sums [3, −7, 4, 8.5, 0]. a is at least half of the rest at 0 (4 ≥ 0.5), 2 (2 ≥ 1) and 4 (3 ≥ 1.5),
    # b at 1, 2, 3 and 4 (3 ≥ 1.5), not at 0 (1 < 2): both at 2 and 4
    check(consensus(DELTAS, weights=WEIGHTS, agreement=2, share=0.5), 0.0, 0.0, 1.5, 0.0, -0.75)
    check(consensus(DELTAS, weights=WEIGHTS, agreement=1, share=0.5), 1.75, -2.0, 1.5, 2.25, -0.75)


def test_consensus_drops_entries_of_no_mask() -> None:
    # 3 is less than twice the other 3
    deltas = torch.tensor([[3.0, 8.0], [3.0, 1.0]])
    check(consensus(deltas, weights=torch.ones(2, 1), agreement=1, share=2.0), 0.0, 9.0)


def test_consensus_refuses_more_agreement_than_tasks() -> None:
    with pytest.raises(ArgumentError, match=r"at most the number of tasks, 2, got 3 at fuse.agreement. Agreement=2"):
        consensus(DELTAS, weights=WEIGHTS, agreement=3)


@pytest.mark.parametrize(
    "parameters", [{"agreement": -1}, {"share": -0.5}, {"share": float("nan")}, {"agreement": 1.5}]
)
def test_consensus_refuses_nonsense(parameters: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=r"consensus: (agreement|share) must be"):
        consensus(DELTAS, weights=WEIGHTS, **parameters)
