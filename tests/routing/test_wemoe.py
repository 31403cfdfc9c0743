"""WEMoE: gates in the MLPs of experts, against task arithmetic, single experts, and weights made for each sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from mlp_experts import MLPS, QUERIES, batch, expert, hidden, whole

import tangora
from tangora.adapters.adapter import load
from tangora.adapters.application import applied
from tangora.errors import ArgumentError, DataError, FusionError, ModelError
from tangora.modes.modular import with_tensors
from tangora.modular.mlps import mlps_of
from tangora.modular.network import attached
from tangora.modular.routed import routed_network
from tangora.routing.block_gates import gates_of
from tangora.routing.route import route
from tangora.routing.routers.wemoe import WemoeSettings
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


def made(experts, base, tasks, method="wemoe", **settings):
    return route(experts, method, base=base, tasks=tasks, **{"steps": 0, "rows": 4, **settings})


def with_gates(adapter, change):
    """The adapter with other values of its gates."""
    updates = {n: Dense(change(u.dense())) if n.startswith("gates.") else u for n, u in adapter.updates.items()}
    return replace(adapter, updates=updates)


def routed(adapter, base, inputs):
    network = with_tensors(routed_network(adapter.metadata.modules), adapter)
    with attached(base.backbone, network):
        return hidden(base.backbone, inputs)


def fused(experts, base, inputs, weights):
    with applied(base.backbone, tangora.fuse(experts, weights=weights)):
        return hidden(base.backbone, inputs)


def by_site(experts, inside, elsewhere=(0.3, 0.3)):
    """Weights of a fusion: some in the MLPs, others elsewhere."""
    sites = {site for one in experts for site in one.updates}
    return {s: list(inside if any(s in (m, f"{m}.weight", f"{m}.bias") for m in MLPS) else elsewhere) for s in sites}


def test_a_vector_is_task_arithmetic_with_its_numbers(experts, base, tasks):
    adapter = made(experts, base, tasks, depth=0, initial=0.7, elsewhere=0.7)
    torch.testing.assert_close(routed(adapter, base, batch()), fused(experts, base, batch(), 0.7), **CLOSE)
    vector = with_gates(adapter, lambda _: torch.tensor([0.2, -0.9]))
    wanted = fused(experts, base, batch(), by_site(experts, (0.2, -0.9), (0.7, 0.7)))
    torch.testing.assert_close(routed(vector, base, batch()), wanted, **CLOSE)


@pytest.mark.parametrize("depth", [1, 2])
def test_fresh_gates_with_weights_of_zero_are_task_arithmetic(experts, base, tasks, depth):
    zero = with_gates(made(experts, base, tasks, depth=depth), lambda t: t * 0 if t.ndim == 2 else t)
    torch.testing.assert_close(routed(zero, base, batch()), fused(experts, base, batch(), 0.3), **CLOSE)


def test_one_hot_is_the_experts_mlps(experts, base, tasks):
    adapter = made(experts, base, tasks, depth=0)
    for i in range(2):
        one = with_gates(adapter, lambda _, i=i: torch.eye(2)[i])
        wanted = fused(experts, base, batch(), by_site(experts, torch.eye(2)[i].tolist()))
        torch.testing.assert_close(routed(one, base, batch()), wanted, **CLOSE)


def big(adapter):
    """Gates whose decisions differ from row to row."""
    return with_gates(adapter, lambda t: t * 60 if t.ndim == 2 else t)


def decisions(adapter, base, inputs):
    """Block -> the weights of every row."""
    network = with_tensors(routed_network(adapter.metadata.modules), adapter)
    with attached(base.backbone, network):
        hidden(base.backbone, inputs)
        return {at: weights for (_, at), weights in network._decided.items()}


def test_it_is_the_model_with_weights_made_for_each_sample(experts, base, tasks):
    adapter, inputs = big(made(experts, base, tasks)), batch()
    weights, answers = decisions(adapter, base, inputs), routed(adapter, base, inputs)
    assert all(float(w.std(0).min()) > 0.01 for w in weights.values())
    for row in range(4):
        coefficients = by_site(experts, (0.3, 0.3))
        for i in range(2):
            chosen = weights[f"encoder.layer.{i}.intermediate"][row].tolist()
            inside = [site for site in coefficients if any(m in site for m in MLPS[2 * i : 2 * i + 2])]
            coefficients |= {site: chosen for site in inside if "LayerNorm" not in site}
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        wanted = fused(experts, base, one, coefficients)
        torch.testing.assert_close(answers[row : row + 1], wanted, **CLOSE)


def test_rows_answer_alone_whatever_their_order_and_padding(experts, base, tasks):
    adapter, inputs, order = big(made(experts, base, tasks)), batch(), torch.tensor([2, 0, 3, 1])
    answers = routed(adapter, base, inputs)
    permuted = routed(adapter, base, {name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(permuted, answers[order], **CLOSE)
    length = int(inputs["attention_mask"][0].sum())
    assert length < inputs["input_ids"].shape[1]
    alone = routed(adapter, base, {name: value[:1, :length] for name, value in inputs.items()})
    torch.testing.assert_close(alone[0], answers[0, :length], **CLOSE)


def test_the_mean_over_a_batch_depends_on_the_other_rows(base, tasks):
    experts = [expert(base, f"task{i}", i + 1) for i in range(2)]
    adapter, inputs = big(made(experts, base, tasks, decide="batch_mean")), batch()
    answers = routed(adapter, base, inputs)
    alone = routed(adapter, base, {name: value[:1] for name, value in inputs.items()})
    assert float((alone[0] - answers[0])[inputs["attention_mask"][0] > 0].abs().max()) > 1e-3
    rows = decisions(adapter, base, inputs)["encoder.layer.0.intermediate"]
    assert torch.equal(rows, rows[:1].expand(4, -1))


def test_everything_is_put_back(experts, base, tasks):
    before = {name: value.clone() for name, value in base.backbone.state_dict().items()}
    made(experts, base, tasks)
    routed(made(experts, base, tasks), base, batch())
    after = base.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_is_saved_answers_as_before(experts, base, tasks, tmp_path):
    adapter = big(made(experts, base, tasks))
    adapter.save(tmp_path / "routed")
    read = load(tmp_path / "routed")
    assert read.fingerprint == adapter.fingerprint
    assert torch.equal(routed(read, base, batch()), routed(adapter, base, batch()))
    model = tangora.modes.contract.mode_of(read).load_model(tmp_path / "routed", tiny_base().backbone)
    torch.testing.assert_close(hidden(model, batch()), routed(adapter, base, batch()), **CLOSE)


def test_a_start_that_is_not_zero_is_added_once(base, tasks):
    begin = expert(base, "start", 9, sites=(*MLPS, *QUERIES)).updates
    experts = []
    for i in range(2):
        one = expert(base, f"task{i}", i + 1)
        moved = {site: update + begin[site] for site, update in one.updates.items()}
        experts.append(replace(one, updates=moved).with_details(initial=begin))
    adapter = made(experts, base, tasks, depth=0)
    torch.testing.assert_close(routed(adapter, base, batch()), fused(experts, base, batch(), 0.3), **CLOSE)


@pytest.mark.parametrize(("depth", "count"), [(2, 7_160_928), (1, 73_824), (0, 96)])
def test_the_parameters_of_the_paper(depth, count):
    """12 (d² + d + dT + T) and 12 (dT + T) for ViT-B/32 and 8 tasks: 7.16 M and 73.8 K."""
    with torch.device("meta"):
        backbone = transformers.CLIPVisionModel(transformers.CLIPVisionConfig())
        gates, _ = gates_of(mlps_of(backbone), 8, WemoeSettings(depth=depth), 0)
    assert sum(p.numel() for gate in gates.values() for p in gate.parameters()) == count


def test_the_record_counts_what_was_trained(experts, base, tasks):
    record = made(experts, base, tasks).metadata.fused.selection
    width, count = 16, 2
    assert record["trained"] == 2 * (width**2 + width + width * count + count)


REFUSED = [
    ({"sites": QUERIES}, {}, FusionError, "no expert changes a layer of an MLP"),
    ({}, {"blocks": "nothing"}, ModelError, "no MLP was found"),
    ({}, {"depth": 3}, ArgumentError, "depth"),
    ({}, {"decide": "row"}, ArgumentError, "decide"),
    ({}, {"split": "test"}, ArgumentError, "split"),
    ({}, {"rows": 1, "held_out": 0.5}, ArgumentError, "at least 2 rows"),
]


@pytest.mark.parametrize(("own", "settings", "error", "message"), REFUSED, ids=[r[3] for r in REFUSED])
def test_what_is_refused(base, tasks, own, settings, error, message):
    experts = [expert(base, f"task{i}", i + 1, **own) for i in range(2)]
    with pytest.raises(error, match=message):
        made(experts, base, tasks, **settings)


def test_it_needs_rows(experts, base):
    with pytest.raises(ArgumentError, match="learns from rows"):
        tangora.fuse(experts, "wemoe")
    with pytest.raises(ArgumentError, match="learns from rows"):
        made(experts, base, [])


def test_a_split_that_is_missing(experts, base, tasks):
    bare = [replace(task, splits={"test": task.splits["test"]}) for task in tasks]
    with pytest.raises(DataError, match="split is missing"):
        made(experts, base, bare)
