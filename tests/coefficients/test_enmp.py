"""ENMP: the layers that do harm are left out, and nothing is if that is best."""

from __future__ import annotations

import math

import pytest

from tangora.coefficients.enmp import enmp
from tangora.coefficients.searches.enmp import EnmpSettings
from tangora.errors import ArgumentError, FusionError, MissingExtraError

SITES = [f"encoder.layer.{layer}.{name}" for layer in range(4) for name in ("query", "value")] + ["pooler.dense"]
HARM = {("encoder.layer.1", 0), ("encoder.layer.3", 2), ("pooler.dense", 1)}


def harm(weights):
    """The loss of a fusion: more with each harmful layer that stays, and with each other that is left out."""
    worst = 0.0
    for site, row in weights.items():
        layer = "pooler.dense" if site.startswith("pooler") else site.rpartition(".")[0]
        for task, weight in enumerate(row):
            wanted = 0.0 if (layer, task) in HARM else 0.5
            worst += (weight - wanted) ** 2
    return worst


def test_it_finds_the_layers_that_do_harm():
    found = enmp(harm, 3, SITES, dropped=0.2, seed=1)  # 15 units, of which 3 are left out
    assert found.loss == harm(found.weights) == 0.0
    assert found.settings["left_out"] == 3
    assert found.steps <= 241
    assert enmp(harm, 3, SITES, dropped=0.2, seed=1).weights == found.weights


def test_nothing_is_left_out_if_that_is_best():
    found = enmp(lambda w: -sum(map(sum, w.values())), 3, SITES, generations=2)
    assert {weight for row in found.weights.values() for weight in row} == {0.5}
    assert found.settings["left_out"] == 0


def test_losses_that_are_not_finite_are_worse_than_others():
    def loss(weights):
        return math.nan if weights["encoder.layer.0.query"][0] == 0 else harm(weights)

    assert math.isfinite(enmp(loss, 3, SITES, generations=3).loss)
    with pytest.raises(FusionError, match="no evaluation had a finite loss, in 17"):
        enmp(lambda w: math.nan, 3, SITES, generations=2)


def test_a_fusion_that_a_method_refuses_is_no_candidate_unless_it_refuses_the_first():
    def loss(weights):
        if any(sum(row) == 0 for row in weights.values()):
            raise ArgumentError("the weights must not sum to zero")
        return sum(map(sum, weights.values()))

    found = enmp(loss, 2, SITES, dropped=0.5, generations=4)
    assert all(sum(row) > 0 for row in found.weights.values())
    assert found.settings["left_out"] == 5

    def refuses(weights):
        raise ArgumentError("no such thing")

    with pytest.raises(ArgumentError, match="no such thing"):
        enmp(refuses, 2, SITES)


def test_whole_experts_and_too_little():
    found = enmp(lambda w: w[1] - w[0] - w[2], 3, dropped=0.3, generations=5)
    assert found.weights == [0.5, 0.0, 0.5]
    with pytest.raises(FusionError, match="there is nothing to leave out"):
        enmp(lambda w: 0.0, 1)


def test_settings_and_the_missing_extra(monkeypatch):
    assert EnmpSettings().label == "enmp"
    assert EnmpSettings(per="task").label == "enmp-task"
    assert EnmpSettings(population=4, generations=5).passes([10, 20]) == 21 * 30
    monkeypatch.setattr("tangora.support.extras._is_installed", lambda name: name != "cmaes")
    with pytest.raises(MissingExtraError, match=r"the search enmp needs .* pip install 'tangora\[search\]'"):
        enmp(harm, 3, SITES)
