"""MoDE from L-LoRA experts: exact up-vectors, of which only the router is learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mlp_experts import MLPS, batch, expert, hidden

import tangora
from tangora.adapters.adapter import load
from tangora.adapters.application import applied
from tangora.errors import FusionError
from tangora.modes.contract import mode_of
from tangora.modes.modular import with_tensors
from tangora.modular.dyadic import dyadic_network
from tangora.modular.network import attached
from tangora.routing.route import route
from tangora.testing._tiny import tiny_base, tiny_tasks
from tangora.updates.task_vector import Dense, LowRank

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of some tens of terms of size 1, normalized by layer norms


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def tasks():
    return tiny_tasks(2)


@pytest.fixture(scope="module")
def experts(base):
    return [expert(base, f"task{i}", i + 1) for i in range(2)]


def made(experts, base, tasks, **settings):
    return route(experts, "dyadic-experts", base=base, tasks=tasks, **{"steps": 0, "rows": 4, **settings})


def with_routers(adapter, change):
    updates = {n: Dense(change(u.dense())) if n.endswith(".router") else u for n, u in adapter.updates.items()}
    return replace(adapter, updates=updates)


def routed(adapter, base):
    with attached(base.backbone, with_tensors(dyadic_network(adapter.metadata.modules), adapter)):
        return hidden(base.backbone, batch())


def fused(experts, base, weights):
    with applied(base.backbone, tangora.fuse(experts, weights=weights)):
        return hidden(base.backbone, batch())


@pytest.mark.parametrize("router", ["input", "shared", "core"])
def test_routers_of_zero_are_the_mean_of_the_experts_or_their_sum(experts, base, tasks, router):
    for scale, weight in ((1.0, 0.5), (2.0, 1.0)):
        uniform = with_routers(made(experts, base, tasks, router=router, scale=scale), torch.zeros_like)
        torch.testing.assert_close(routed(uniform, base), fused(experts, base, weight), **CLOSE)


def test_a_token_gets_the_up_vectors_that_its_router_names(experts, base, tasks):
    """By hand, at one site: every rank of every token takes a weighted mean of the experts' columns."""
    adapter = with_routers(made(experts, base, tasks), lambda t: t * 100)
    network = with_tensors(dyadic_network(adapter.metadata.modules), adapter)
    dyads = network.sites.at(MLPS[0])
    x = torch.randn(16, generator=torch.Generator().manual_seed(3))
    total = torch.zeros(32)
    for j in range(2):
        weights = (dyads.router[j] @ x).softmax(0)
        for t, one in enumerate(experts):
            update = one.updates[MLPS[0]]
            total += update.scaling * (update.a[j] @ x) * weights[t] * update.b[:, j]
    torch.testing.assert_close(dyads(x), total, **CLOSE)


def test_a_router_that_is_certain_of_a_token_is_one_expert(experts, base, tasks):
    adapter = made(experts, base, tasks)
    network = with_tensors(dyadic_network(adapter.metadata.modules), adapter)
    x = torch.randn(16, generator=torch.Generator().manual_seed(3))
    for t, one in enumerate(experts):
        dyads = network.sites.at(MLPS[0])
        dyads.router.data.zero_()
        dyads.router.data[:, t] = 1e4 * x
        torch.testing.assert_close(dyads(x), one.updates[MLPS[0]].dense() @ x, **CLOSE)


@pytest.mark.parametrize("objective", ["entropy", "labels"])
def test_only_routers_learn(experts, base, tasks, objective, tmp_path):
    quick = {"steps": 20, "rows": 12, "batch_size": 12, "learning_rate": 3e-3, "objective": objective}
    start, after = made(experts, base, tasks), made(experts, base, tasks, **quick)
    record = after.metadata.fused.selection
    assert sum(record["after"].values()) < sum(record["before"].values())
    moved = {n for n, u in after.updates.items() if not torch.equal(u.dense(), start.updates[n].dense())}
    assert moved == {name for name in after.updates if name.endswith(".router")}
    assert record["trained"] == sum(after.updates[name].dense().numel() for name in moved)
    after.save(tmp_path / "made")
    read = load(tmp_path / "made")
    assert (read.metadata.kind, read.metadata.train) == ("routed", "dyadic")
    assert torch.equal(routed(read, base), routed(after, base))
    model = mode_of(read).load_model(tmp_path / "made", tiny_base().backbone)
    torch.testing.assert_close(hidden(model, batch()), routed(after, base), **CLOSE)
    assert set(tangora.evaluate(after, base, tasks)) == {"task0", "task1"}


def test_an_expert_without_a_site_has_zeros_there(experts, base, tasks):
    less = replace(experts[1], updates={s: u for s, u in experts[1].updates.items() if s != MLPS[0]})
    zero = replace(experts[1], updates={s: u * 0.0 if s == MLPS[0] else u for s, u in experts[1].updates.items()})
    one, other = (made([experts[0], second], base, tasks) for second in (less, zero))
    assert torch.equal(routed(one, base), routed(other, base))


def other_a(update):
    return LowRank(update.b, update.a + 0.1, update.scaling)


def larger(update):
    return LowRank(torch.cat([update.b, update.b], 1), torch.cat([update.a, update.a]), update.scaling)


def test_what_shares_no_direction_is_refused(experts, base, tasks):
    moved = replace(experts[1], updates={s: other_a(u) for s, u in experts[1].updates.items()})
    with pytest.raises(FusionError, match=r"task0 and task1 have different A.*a_init: shared"):
        made([experts[0], moved], base, tasks)
    uneven = [replace(e, updates={**e.updates, MLPS[1]: larger(e.updates[MLPS[1]])}) for e in experts]
    with pytest.raises(FusionError, match="one rank"):
        made(uneven, base, tasks)
    with pytest.raises(FusionError, match="block must divide"):
        made(experts, base, tasks, block=3)
    begun = [e.with_details(initial=e.updates) for e in experts[:1]]
    with pytest.raises(FusionError, match="trained from zero"):
        made([*begun, *begun], base, [tasks[0], tasks[0]])
