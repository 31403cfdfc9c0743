"""Each method on numbers small enough to follow by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods import average, dare, dare_ties, magnitude_prune, task_arithmetic, ties, ties_per_tensor

#          entry        0     1     2     3     4
DELTAS = torch.tensor([[4.0, -1.0, 2.0, 0.5, -3.0], [-1.0, -6.0, 2.0, 8.0, 3.0]])
WEIGHTS = torch.tensor([[0.5], [0.25]])
UNIFORMS = torch.tensor([[0.1, 0.9, 0.4, 0.5, 0.2], [0.7, 0.3, 0.1, 0.0, 0.49]])


def check(result: Tensor, *expected: float) -> None:
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
    with pytest.raises(FusionError, match=r"weights must not sum to zero.*task_arithmetic"):
        average(DELTAS, weights=torch.tensor(weights).reshape(2, 1))


def test_average_refuses_weights_that_cancel_at_one_entry() -> None:
    weights = torch.ones(2, 5)
    weights[1, 3] = -1
    with pytest.raises(FusionError, match=r"weights must not sum to zero"):
        average(DELTAS, weights=weights)
