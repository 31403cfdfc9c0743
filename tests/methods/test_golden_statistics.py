"""Methods that are given statistics, on numbers small enough to follow by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.methods import fisher, regmean

EVEN = torch.ones(2, 1, 1)


def check(result: Tensor, *rows: list[float]) -> None:
    torch.testing.assert_close(result, torch.tensor(rows), rtol=0, atol=1e-5)


def test_fisher() -> None:
    deltas = torch.tensor([[[4.0, 8.0, 2.0, 6.0]], [[1.0, -4.0, 4.0, 2.0]]])
    information = torch.tensor([[[2.0, 1.0, 0.0, 0.0]], [[1.0, 3.0, 5.0, 0.0]]])
    # (2·4 + 1·1)/3 = 3; (1·8 − 3·4)/4 = −1; only the second has information: 4; neither has: the mean, 4
    check(fisher(deltas, weights=EVEN, statistics=information), [3.0, -1.0, 4.0, 4.0])
    # the weights multiply the updates: (2·2·4 − 1·1)/3 = 5; (2·8 + 3·4)/4 = 7; −4; (2·6 − 2)/2 = 5
    weights = torch.tensor([2.0, -1.0]).reshape(2, 1, 1)
    check(fisher(deltas, weights=weights, statistics=information), [5.0, 7.0, -4.0, 5.0])


def test_fisher_of_tiny_gradients() -> None:
    information = torch.tensor([[[1.5e-38]], [[0.5e-38]]])
    check(fisher(torch.tensor([[[4.0]], [[0.0]]]), weights=EVEN, statistics=information), [3.0])


def test_regmean() -> None:
    deltas = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    grams = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]])
    # α = 1: ν₁G₁ + ν₂G₂ = (2, 1) + (0, 1) = (2, 2); ΣG = [[3, 1], [1, 3]] has (2, 2) = ΣG·(½, ½)
    check(regmean(deltas, weights=EVEN, statistics=grams, off_diagonal=1.0, ridge=0.0), [0.5, 0.5])
    # α = 0: only diagonals 2, 2 and 1, 1: (2/3, 1/3)
    check(regmean(deltas, weights=EVEN, statistics=grams, off_diagonal=0.0, ridge=0.0), [2 / 3, 1 / 3])
    # α = ½: (2, ½) + (0, 1) = (2, 1.5); ΣG̃ = [[3, ½], [½, 3]], det 8.75: (2·3 − 1.5·½, 1.5·3 − 2·½)/8.75 = (0.6, 0.4)
    check(regmean(deltas, weights=EVEN, statistics=grams, off_diagonal=0.5, ridge=0.0), [0.6, 0.4])
    # weights multiply the updates: α = 1 and (2, −1): (4, 2) − (0, 1) = (4, 1); (4·3 − 1, 1·3 − 4)/8 = (11/8, −1/8)
    weights = torch.tensor([2.0, -1.0]).reshape(2, 1, 1)
    check(regmean(deltas, weights=weights, statistics=grams, off_diagonal=1.0, ridge=0.0), [1.375, -0.125])


def test_regmean_where_no_task_has_inputs() -> None:
    deltas = torch.tensor([[[4.0, 6.0]], [[0.0, 2.0]]])
    grams = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    # the second input is zero in both tasks: the mean of 6 and 2 there, (3·4 + 0)/4 = 3 in the first
    check(regmean(deltas, weights=EVEN, statistics=grams), [3.0, 4.0])
    with pytest.raises(ArgumentError, match=r"second moments is singular, got 0\.0 at fuse\.ridge"):
        regmean(deltas, weights=EVEN, statistics=grams, ridge=0.0)


def test_regmean_of_inputs_that_are_never_seen_is_the_mean() -> None:
    deltas = torch.tensor([[[4.0, 6.0]], [[0.0, 2.0]]])
    check(regmean(deltas, weights=EVEN, statistics=torch.zeros(2, 2, 2)), [2.0, 4.0])


def test_on_updates_they_are_what_they_are_on_whole_weights() -> None:
    g = torch.Generator().manual_seed(0)
    base, deltas = torch.randn(5, 4, generator=g).double(), torch.randn(3, 5, 4, generator=g).double()
    samples = torch.randn(3, 9, 4, generator=g).double()
    ones, grams = torch.ones(3, 1, 1), samples.mT @ samples
    for method, known in ((fisher, deltas.square()), (regmean, grams)):
        whole = method(base + deltas, weights=ones, statistics=known)
        torch.testing.assert_close(whole, base + method(deltas, weights=ones, statistics=known))


@pytest.mark.parametrize("options", [{"off_diagonal": 1.1}, {"off_diagonal": -0.1}, {"ridge": -1e-6}])
def test_regmean_refuses(options: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=f"regmean: {next(iter(options))} must be in"):
        regmean(torch.ones(2, 1, 2), weights=EVEN, statistics=torch.eye(2).expand(2, 2, 2), **options)
