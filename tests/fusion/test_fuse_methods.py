"""The methods beyond the first seven, through `fuse`: what the engine makes of them on adapters and on whole models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import toys
from tangora import methods
from tangora.adapters.adapter import Adapter, load
from tangora.adapters.metadata import Metadata
from tangora.errors import FusionError
from tangora.fusion.fusion import fuse
from tangora.methods import fusion_method
from tangora.updates.task_vector import Dense, LowRank

METHODS = [
    "breadcrumbs", "consensus", "della", "iso_c", "iso_cts", "knots", "model_stock", "slerp", "svd", "tsv_m",
    "cart", "ctm", "do_merging", "equal_norms", "mean_norm", "pico", "robust_merge", "wudi",
    "ctm+dare_ties", "equal_norms+knots", "pico+tsv_m",
]  # fmt: skip


def pair() -> list[Adapter]:
    return [toys.lora(1), toys.lora(2)]


def full(seed: int) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    shapes = {"bias": (4,), "weight": (4, 3), "scale": (), "kernel": (4, 2, 3, 3)}
    return Adapter({k: Dense(torch.randn(s, generator=g)) for k, s in shapes.items()}, Metadata(kind="full"))


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    return adapter.task_vector.dense()


def assert_same(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor], tolerance: float) -> None:
    assert x.keys() == y.keys()
    for site in x:
        torch.testing.assert_close(x[site], y[site], rtol=tolerance, atol=tolerance)


@pytest.fixture
def draws(monkeypatch):
    """A method called "draws" that shows the random numbers of the engine."""
    from tangora.methods import _registry

    monkeypatch.setattr(_registry, "_METHODS", dict(_registry.methods()))

    @fusion_method("draws", granularity="element", reference="none", default_weight=1.0, random=True)
    def shown(deltas, *, weights, uniforms):
        """The numbers themselves."""
        return uniforms[0]


@pytest.mark.parametrize("make", [pair, lambda: [full(1), full(2)]])
@pytest.mark.parametrize("method", METHODS)
def test_a_site_is_what_the_function_says(method, make, draws):
    chosen, adapters = methods.get(method), make()
    fused = dense(fuse(adapters, method, [0.5, 1.25], seed=3))
    assert fused.keys() == adapters[0].updates.keys()
    for site, found in fused.items():
        stacked = torch.stack([dense(a)[site] for a in adapters])
        weights = torch.tensor([0.5, 1.25]).reshape(2, *(1,) * (stacked.ndim - 1))
        given = {}
        if chosen.random:
            given = {"uniforms": torch.stack([dense(fuse([a], "draws", seed=3))[site] for a in adapters])}
        expected = chosen.function(stacked, weights=weights, **given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_fused_at_a_rank_is_saved_and_read(tmp_path, method):
    fused = fuse(pair(), method, rank=4)
    fused.save(tmp_path / "x")
    assert_same(dense(load(tmp_path / "x")), dense(fused), 1e-4)
    assert fused.metadata.fused.parameters.keys() == methods.get(method).parameters.keys()


@pytest.mark.parametrize("method", [m for m in METHODS if not methods.get(m).random])
def test_how_an_update_is_factored_changes_nothing(method):
    first, second = pair()
    turn = torch.tensor([[2.0, 1.0], [-1.0, 0.5]])
    updates = {s: LowRank(u.b @ turn, torch.linalg.inv(turn) @ u.a, u.scaling) for s, u in first.updates.items()}
    found = fuse([replace(first, updates=updates).with_details(initial=None), second], method)
    assert_same(dense(found), dense(fuse(pair(), method)), 1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_slerp_of_another_number_is_refused_before_anything_is_computed(count):
    with pytest.raises(FusionError, match=f"slerp fuses exactly 2, got {count} at fuse.adapters"):
        fuse([toys.lora(seed) for seed in range(count)], "slerp")


@pytest.mark.parametrize("method", ["equal_norms", "mean_norm", "mean_norm+average", "mean_norm+equal_norms"])
def test_a_sum_of_scaled_updates_stays_in_factors(method):
    adapters = [toys.lora(seed, shared_a=True, initial=False) for seed in (1, 2, 3)]
    strong = {site: update * 30.0 for site, update in adapters[0].updates.items()}
    adapters[0] = replace(adapters[0], updates=strong)
    weights = [0.5, 1.0, 0.25]
    for by_site in (False, True):
        given = dict.fromkeys(strong, weights) if by_site else weights
        fused = fuse(adapters, method, given)
        for site, update in fused.updates.items():
            assert isinstance(update, LowRank)
            assert update.rank == 2  # of one A: no rank is added up, and none was found by a decomposition
            stacked = torch.stack([dense(a)[site] for a in adapters]).double()
            column = torch.tensor(weights, dtype=torch.float64).reshape(3, 1, 1)
            expected = methods.get(method).function(stacked, weights=column)
            torch.testing.assert_close(update.dense().double(), expected, rtol=1e-5, atol=1e-5)


def test_a_site_that_an_adapter_lacks_counts_as_zero_in_both_routes():
    first, second = pair()
    second = replace(second, updates={"up": second.updates["up"]}).with_details(initial=None)
    factored = dense(fuse([first, second], "mean_norm", [1.0, 0.5]))
    whole = [replace(a, updates={s: Dense(u.dense()) for s, u in a.updates.items()}) for a in (first, second)]
    full_rank = dense(fuse([a.with_details(initial=None) for a in whole], "mean_norm", [1.0, 0.5]))
    assert_same(factored, full_rank, 1e-5)
    torch.testing.assert_close(factored["down"], dense(first)["down"], rtol=1e-5, atol=1e-5)
