"""AdaMerging and learned coefficients, on columns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from columns import columns_of, tasks_of

from tangora.coefficients.descend import _Adam, _shuffled, adamerging, learned
from tangora.coefficients.linear import LinearLogits
from tangora.coefficients.samerging import samerging
from tangora.coefficients.solve import convex, minimax
from tangora.errors import ArgumentError, FusionError


def test_entropy_is_of_each_row_and_then_averaged():
    # Two rows that are sure of different classes: no entropy, though their mean logits are a coin toss.
    one = columns_of("a", rows=2, vectors=("a",), classes=2)
    sure = replace(one, origin=torch.tensor([[40.0, 0.0], [0.0, 40.0]]), columns=torch.zeros(1, 2, 2))
    unsure = replace(sure, origin=torch.zeros(2, 2))
    assert adamerging(LinearLogits([sure]), steps=1).loss == pytest.approx(0.0, abs=1e-9)
    assert adamerging(LinearLogits([unsure]), steps=1).loss == pytest.approx(math.log(2))


def test_adamerging_needs_no_labels_and_lowers_the_entropy():
    columns = tasks_of(2)
    found = adamerging(LinearLogits(columns))
    others = [replace(c, labels=(c.labels + 1) % 3) for c in columns]
    assert adamerging(LinearLogits(others)).weights == found.weights
    assert found.loss < adamerging(LinearLogits(columns), steps=1, learning_rate=1e-9).loss - 0.01
    assert found.gap is None
    assert found.steps == 50


def test_fifty_large_steps_on_all_rows_go_where_the_papers_five_hundred_go():
    logits = LinearLogits(tasks_of(2))
    paper = adamerging(logits, steps=500, learning_rate=1e-3)
    assert adamerging(logits).weights == pytest.approx(paper.weights, abs=0.05)


def test_coefficients_stay_in_the_box():
    logits = LinearLogits(tasks_of(2, strength=8.0))
    assert adamerging(logits, steps=300, learning_rate=0.05).weights == [1.0, 1.0]
    assert max(adamerging(logits, steps=300, learning_rate=0.05, bound=2.0).weights) > 1.0
    away = [replace(c, columns=-c.columns) for c in tasks_of(2)]
    assert min(learned(LinearLogits(away), nonnegative=True).weights) == 0.0
    assert min(learned(LinearLogits(away)).weights) < 0.0


@pytest.mark.parametrize("sites", [0, 3])
def test_learned_comes_near_the_convex_optimum(sites):
    columns = tasks_of(2, sites=sites)
    best = convex(columns, l2=0.05)
    found = learned(LinearLogits(columns), l2=0.05, steps=400)
    assert best.objective - 1e-9 <= found.objective <= best.objective + 0.005
    assert type(found.weights) is type(best.weights)


def test_the_worst_task_gains():
    columns = tasks_of(2, noise=2.0)
    own = LinearLogits(columns)
    experts = [own.losses(torch.eye(2, dtype=torch.float64)[i])[i] for i in range(2)]
    mean = learned(own)
    losses = own.losses(torch.tensor(mean.weights, dtype=torch.float64))
    found = learned(own, worst_task=True, steps=300)
    assert minimax(columns).loss - 1e-3 <= found.loss
    assert found.loss < max(a - b for a, b in zip(losses, experts, strict=True)) - 1e-3
    assert found.settings["search"] == "minimax"


def test_adam_is_adam():
    x, y = (torch.full((3,), 0.3, requires_grad=True) for _ in range(2))
    mine, theirs = _Adam(x, 0.01), torch.optim.Adam([y], lr=0.01)
    for step in range(5):
        for z in (x, y):
            z.grad = torch.tensor([1.0, -0.1 * step, 1e-3])
        with torch.no_grad():
            mine.step()
        theirs.step()
    torch.testing.assert_close(x, y)


def test_every_row_comes_once_before_any_comes_again():
    picks = _shuffled(10, 4, 0, "task")
    first = [i for _ in range(5) for i in next(picks)]
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert next(_shuffled(3, 16, 0, "task")) == [0, 1, 2]
    assert next(_shuffled(10, 4, 0, "task")) == first[:4] != next(_shuffled(10, 4, 0, "other"))


def test_bad_settings():
    logits = LinearLogits(tasks_of(2))
    with pytest.raises(ArgumentError, match="bound must be positive"):
        adamerging(logits, bound=-1.0)
    with pytest.raises(FusionError, match="needs each task's own expert"):
        learned(LinearLogits([replace(c, vectors=("x", "y")) for c in tasks_of(2)]), worst_task=True)


@pytest.mark.parametrize("sites", [0, 3])
def test_samerging_follows_each_tasks_own_expert_without_labels(sites):
    """Its loss is the divergence from the experts, computed here in another way; labels play no part."""
    columns = tasks_of(2, sites=sites)
    logits = LinearLogits(columns)
    found = samerging(logits, steps=300, sharpness=0.0)
    others = [replace(c, labels=(c.labels + 1) % 3) for c in columns]
    assert samerging(LinearLogits(others), steps=300, sharpness=0.0).weights == found.weights

    def divergence(weights):
        total = 0.0
        for index, one in enumerate(columns):
            slopes = one.columns if not sites else one.columns.sum(1)
            expert = (one.origin + slopes[index]).double().log_softmax(-1)
            c = torch.tensor(list(weights.values()) if sites else weights)
            added = torch.einsum("sv,vsrc->rc", c, one.columns) if sites else torch.einsum("v,vrc->rc", c, one.columns)
            fused = (one.origin + added).double().log_softmax(-1)
            total += float((expert.exp() * (expert - fused)).sum(-1).mean()) / len(columns)
        return total

    assert found.loss == pytest.approx(divergence(found.weights), rel=1e-3)
    start = {site: [0.3, 0.3] for site in ("s0", "s1", "s2")} if sites else [0.3, 0.3]
    assert found.loss < divergence(start) - 0.01


def test_sharpness_moves_the_gradient_to_the_worst_point_nearby():
    """With one coefficient the worst point is ρ away, uphill: the step's gradient is the one there."""
    columns = [columns_of("t0", vectors=("t0",), own=0)]
    plain = samerging(LinearLogits(columns), steps=1, sharpness=0.0, learning_rate=1e-3)
    sharp = samerging(LinearLogits(columns), steps=400, sharpness=0.5)
    own = samerging(LinearLogits(columns), steps=400, sharpness=0.0)
    assert plain.weights[0] > 0.3  # towards the expert, at 1
    assert own.weights[0] == pytest.approx(1.0, abs=0.02)
    assert sharp.weights[0] != pytest.approx(own.weights[0], abs=1e-3)
    assert own.loss <= sharp.loss + 1e-6


def test_samerging_needs_an_expert_of_every_task():
    columns = [columns_of("t0", vectors=("other",), own=0)]
    with pytest.raises(FusionError, match="own expert"):
        samerging(LinearLogits(columns))
