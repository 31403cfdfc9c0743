"""E-WEMoE: pruned experts and a shared gate, against WEMoE and against matrices pruned by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mlp_experts import MLPS, batch, expert, hidden, whole

import tangora
from tangora.adapters.adapter import load
from tangora.adapters.application import applied
from tangora.errors import AdapterError, ArgumentError, FusionError
from tangora.modes.modular import with_tensors
from tangora.modular.network import attached
from tangora.modular.routed import routed_network
from tangora.routing.route import route
from tangora.testing._tiny import tiny_base, tiny_tasks
from tangora.updates.task_vector import Dense

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of some tens of terms of size 1, normalized by layer norms


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def tasks():
    return tiny_tasks(2)


@pytest.fixture(scope="module", params=["lora", "full"])
def experts(request, base):
    make = expert if request.param == "lora" else whole
    return [make(base, f"task{i}", i + 1) for i in range(2)]


def made(experts, base, tasks, method="e-wemoe", **settings):
    return route(experts, method, base=base, tasks=tasks, **{"steps": 0, "rows": 4, **settings})


def routed(adapter, base, inputs=None):
    network = with_tensors(routed_network(adapter.metadata.modules), adapter)
    with attached(base.backbone, network):
        return hidden(base.backbone, inputs or batch())


def pruned(tensor, keep):
    """The tensor without all but its largest entries, the slow way."""
    count = max(1, round(keep * tensor.numel()))
    order = sorted(range(tensor.numel()), key=lambda i: -abs(float(tensor.flatten()[i])))[:count]
    kept = torch.zeros(tensor.numel())
    kept[order] = tensor.flatten()[order]
    return kept.reshape(tensor.shape)


def by_hand(experts, keep, lam=0.3):
    """The sum of pruned MLPs and of everything else, as a change of all weights."""
    total = {}
    for one in experts:
        for name, update in one.updates.items():
            change = update.dense()
            layer = name.removesuffix(".weight").removesuffix(".bias")
            total[name] = total.get(name, 0) + lam * (pruned(change, keep) if layer in MLPS else change)
    updates = {name: Dense(change) for name, change in total.items()}
    return replace(experts[0], updates=updates)


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_a_vector_is_the_sum_of_pruned_mlps(experts, base, tasks, keep):
    adapter = made(experts, base, tasks, depth=0, keep=keep)
    with applied(base.backbone, by_hand(experts, keep)):
        wanted = hidden(base.backbone, batch())
    torch.testing.assert_close(routed(adapter, base), wanted, **CLOSE)


def test_without_pruning_and_sharing_it_is_wemoe(experts, base, tasks):
    one = made(experts, base, tasks, keep=1, shared=False, steps=2, learning_rate=0.01)
    other = made(experts, base, tasks, "wemoe", steps=2, learning_rate=0.01)
    assert one.updates.keys() == other.updates.keys()
    assert all(torch.equal(u.dense(), other.updates[n].dense()) for n, u in one.updates.items())
    assert one.metadata.modules == other.metadata.modules


def test_all_entries_of_a_sparse_matrix_answer_as_whole_ones(experts, base, tasks):
    """0.999 of 512 entries rounds to 511; 1 - 1e-9 to all of them, in sparse form."""
    one, other = made(experts, base, tasks, keep=1 - 1e-9), made(experts, base, tasks, keep=1)
    assert {site["form"] for site in one.metadata.modules["sites"].values()} == {"sparse"}
    torch.testing.assert_close(routed(one, base), routed(other, base), **CLOSE)
    assert one.metadata.fused.selection["pruning_error"] < 1e-3  # the root of the rounding of a difference of squares


def test_the_gate_is_shared_and_may_know_the_layer(experts, base, tasks):
    width, count = 16, 2
    plain = made(experts, base, tasks)
    assert list(plain.metadata.modules["gates"]) == ["shared"]
    assert plain.metadata.fused.selection["trained"] == width**2 + width + width * count + count
    coded = made(experts, base, tasks, code=8)
    more = 8 * width
    assert coded.metadata.fused.selection["trained"] == plain.metadata.fused.selection["trained"] + more
    adapter = replace(
        coded,
        updates={
            n: Dense(u.dense() * 60) if n.startswith("gates.") and len(u.shape) == 2 else u
            for n, u in coded.updates.items()
        },
    )
    network = with_tensors(routed_network(adapter.metadata.modules), adapter)
    seen = torch.ones(1, 3, width)
    found = []
    for layer in range(2):
        network.gate("shared").placed(f"encoder.layer.{layer}.intermediate")
        found.append(network.gate("shared")(seen))
    assert not torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize("objective", ["entropy", "follow"])
def test_a_shared_gate_learns_through_sparse_matrices(experts, base, tasks, objective):
    settings = {"steps": 20, "rows": 12, "batch_size": 4, "learning_rate": 2e-2, "keep": 0.5}
    record = made(experts, base, tasks, objective=objective, **settings).metadata.fused.selection
    assert sum(record["after"].values()) < sum(record["before"].values())


def test_what_is_saved_answers_as_before(experts, base, tasks, tmp_path):
    adapter = made(experts, base, tasks, code=4)
    adapter.save(tmp_path / "routed")
    read = load(tmp_path / "routed")
    assert torch.equal(routed(read, base), routed(adapter, base))
    model = tangora.modes.contract.mode_of(read).load_model(tmp_path / "routed", tiny_base().backbone)
    torch.testing.assert_close(hidden(model, batch()), routed(adapter, base), **CLOSE)


def test_the_file_has_two_numbers_an_entry(base, tasks):
    experts = [whole(base, f"task{i}", i + 1) for i in range(2)]
    adapter = made(experts, base, tasks)
    name = "sites.encoder.layer.0.intermediate.dense"
    kept = round(0.1 * 32 * 16)
    shapes = {part: adapter.updates[f"{name}.{part}"].shape for part in ("values", "columns", "counts", "bias")}
    assert shapes == {"values": (2, kept), "columns": (2, kept), "counts": (2, 32), "bias": (2, 32)}


def test_the_errors_of_pruning_and_of_factors_are_recorded(base, tasks):
    experts = [expert(base, f"task{i}", i + 1) for i in range(2)]
    record = made(experts, base, tasks, form="low-rank", rank=3).metadata.fused.selection
    lost = kept = left = total = 0.0
    for one in experts:
        for site in MLPS:
            dense = one.updates[site].dense()
            small = pruned(dense, 0.1)
            _, s, _ = torch.linalg.svd(small.double())
            total, lost = total + float(dense.square().sum()), lost + float((dense - small).square().sum())
            kept, left = kept + float(small.square().sum()), left + float(s[3:].square().sum())
    assert record["pruning_error"] == pytest.approx(math.sqrt(lost / total), rel=1e-4)
    assert record["truncation_error"] == pytest.approx(math.sqrt(left / kept), rel=1e-4)
    sparse = made(experts, base, tasks).metadata.fused.selection
    assert sparse["pruning_error"] == pytest.approx(record["pruning_error"], rel=1e-4)
    assert "truncation_error" not in sparse


def test_factors_of_full_rank_are_the_sparse_matrices(base, tasks):
    experts = [expert(base, f"task{i}", i + 1) for i in range(2)]
    one, other = made(experts, base, tasks, form="low-rank", rank=16), made(experts, base, tasks)
    torch.testing.assert_close(routed(one, base), routed(other, base), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 0}, "greater than 0"),
        ({"keep": 20}, "less than or equal to 1"),
        ({"code": 3}, "multiple of 2"),
        ({"code": 8, "shared": False}, "needs no code"),
        ({"form": "low-rank"}, "needs a rank"),
        ({"rank": 3}, "only it has one"),
        ({"form": "low-rank", "rank": 3, "keep": 1}, "nothing is pruned"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(base, tasks, settings, said):
    experts = [expert(base, f"task{i}", i + 1) for i in range(2)]
    with pytest.raises(ArgumentError, match=said):
        made(experts, base, tasks, **settings)


def test_whole_matrices_with_biases_are_not_factored(base, tasks):
    experts = [whole(base, f"task{i}", i + 1) for i in range(2)]
    with pytest.raises(FusionError, match="low-rank experts have no biases"):
        made(experts, base, tasks, form="low-rank", rank=3)


@pytest.mark.parametrize("part", ["columns", "counts"])
def test_places_that_are_in_no_matrix_are_refused(base, tasks, part):
    """Sparse products read memory by these numbers, without a check of their own."""
    adapter = made([expert(base, "task0", 1), expert(base, "task1", 2)], base, tasks)
    name = f"sites.{MLPS[0]}.{part}"
    values = adapter.updates[name].dense().clone()
    values[0, 0] += 10_000
    edited = replace(adapter, updates={**adapter.updates, name: Dense(values)})
    with pytest.raises(AdapterError, match=rf"counts or columns of sparse experts .* at {MLPS[0]}"):
        routed(edited, base)
