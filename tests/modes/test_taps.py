"""TAPS: gates per layer on LoRA and on weights, alone and on top of an adapter of all tasks."""

from __future__ import annotations

import peft
import pytest
import torch

import tangora
from tangora.adapters.adapter import load
from tangora.config.settings import FinetuneConfig
from tangora.errors import ModelError
from tangora.modes import gating
from tangora.modes.contract import Bench, mode_of
from tangora.modes.finetuning import finetune
from tangora.modular.gated_weights import gated_weights, weight_groups
from tangora.support.files import read_json
from tangora.tasks.model import TaskModel, predict
from tangora.testing._tiny import tiny_base, tiny_tasks

LORA = {"r": 2, "target_modules": ["query", "value", "dense"], "dropout": 0.2}
STEADY = {"penalty": 0, "gate_start": 10.0}
"""Gates that stay open."""


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def config(train, *, lora=None, training=None, **keys):
    """A short training, whose gradients are clipped by no norm: that of the gates would count too."""
    chosen = {"steps": 6, "batch_size": 4, "learning_rate": 2e-2, "max_grad_norm": 1e9, "checkpoint_every": 2}
    if "full" not in train:
        keys["lora"] = {**LORA, **(lora or {})}
    return FinetuneConfig(mode="m", train=train, training={**chosen, **(training or {})}, **keys).resolved()


def trained(base, settings, tasks=1):
    bench = Bench(base)
    made = mode_of(settings).train(bench, tiny_tasks(tasks), settings)
    return made["task0"], bench.records["task0"]


def same(one, other):
    assert one.updates.keys() == other.updates.keys()
    for site, update in one.updates.items():
        assert torch.equal(update.dense(), other.updates[site].dense()), site


def partly(train="taps", **keys):
    """Gates that start at the threshold: those that the task pushes down close."""
    return config(train, penalty=0, gate_start=0.1, **keys)


def test_with_all_gates_open_it_is_lora_step_for_step(base):
    """Bit for bit, dropout included: a gate of 1 multiplies by 1, and draws nothing."""
    plain, expected = trained(base, config("lora"))
    gated, found = trained(base, config("taps", **STEADY))
    same(gated, plain)
    assert found["loss"] == expected["loss"]
    assert gated.metadata.gates.closed == []
    assert gated.metadata.initial == plain.metadata.initial


def test_with_all_gates_open_it_is_full_fine_tuning_step_for_step(base):
    slow = {"learning_rate": 1e-3}
    plain, expected = trained(base, config("full", training=slow))
    gated, found = trained(base, config("taps-full", layers="all", training=slow, **STEADY))
    same(gated, plain)
    assert found["loss"] == expected["loss"]
    linear, _ = trained(base, config("taps-full", norms="freeze", training=slow, **STEADY))
    modules = dict(base.backbone.named_modules())
    of_linear = {n for n in plain.updates if isinstance(modules[n.rpartition(".")[0]], torch.nn.Linear)}
    assert linear.updates.keys() == of_linear != plain.updates.keys()


@pytest.mark.parametrize("train", ["taps", "taps-full"])
def test_a_large_penalty_closes_all_gates_and_the_error_says_what_to_do(base, train):
    keys = {"norms": "freeze"} if train == "taps-full" else {}
    settings = config(train, penalty=1e4, gate_rate=0.05, training={"steps": 8}, **keys)
    with pytest.raises(ModelError, match=r"all \d+ gates closed.*Lower penalty"):
        trained(base, settings)


def test_closed_weights_leave_the_trained_norms(base):
    adapter, record = trained(base, config("taps-full", penalty=1e4, gate_rate=0.05, training={"steps": 8}))
    assert adapter.updates
    assert all("LayerNorm" in name for name in adapter.updates)
    assert record["gates"]["closed"] == list(record["gates"]["values"])


@pytest.mark.parametrize("train", ["taps", "taps-full"])
def test_closed_layers_are_left_out_and_the_rest_answers_as_trained(base, train, tmp_path):
    task = tiny_tasks(1)[0]
    settings = partly(train)
    adapter = finetune(base, task, settings, out=tmp_path / "out")
    gates, record = adapter.metadata.gates, read_json(tmp_path / "out" / "training.json")
    closed = set(gates.closed)
    assert closed
    assert closed < gates.values.keys()
    assert closed == {name for name, value in gates.values.items() if value < 0.1}
    layers = {n.rpartition(".")[0] if train == "taps-full" else n for n in adapter.updates if "Norm" not in n}
    assert layers == gates.values.keys() - closed
    assert record["gates"] == gates.model_dump()
    read = load(tmp_path / "out")
    assert (read.fingerprint, read.metadata.gates) == (adapter.fingerprint, gates)
    with mode_of(adapter).answering(base, read, {}) as model_of:
        found = predict(model_of(task), task.splits["validation"], 64)
    # the last validation was of the gated network itself
    assert found.losses.mean() == pytest.approx(record["validation"][-1]["loss"], rel=1e-5)


def test_stock_peft_loads_the_open_layers(base, tmp_path):
    task = tiny_tasks(1)[0]
    adapter = finetune(base, task, partly(), out=tmp_path / "out")
    batch = torch.arange(6).reshape(2, 3)
    with mode_of(adapter).answering(base, adapter, {}) as model_of:
        expected = model_of(task).backbone(input_ids=batch).last_hidden_state
    model = peft.PeftModel.from_pretrained(tiny_base().backbone, str(tmp_path / "out")).eval()
    adapted = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == adapter.updates.keys()
    torch.testing.assert_close(model(input_ids=batch).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    loaded = tangora.load_model(tmp_path / "out", tiny_base())
    torch.testing.assert_close(loaded(input_ids=batch).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_a_penalty_counts_from_its_first_step_on(base):
    """The weights of step ``free · steps`` are those without penalty, so the losses differ by λ · mean|s| alone."""
    _, plain = trained(base, config("taps", penalty=0))
    _, late = trained(base, config("taps", penalty=3.0, penalty_free=0.5))
    _, never = trained(base, config("taps", penalty=3.0, penalty_free=1.0))
    assert never["loss"] == plain["loss"]
    assert late["loss"][:3] == plain["loss"][:3]
    rate, mean = 2e-3, 0.15
    moved = 3 * rate  # at most, by three steps of Adam
    assert abs(late["loss"][3] - plain["loss"][3] - 3.0 * mean) <= 3.0 * moved
    _, released = trained(base, config("taps", penalty=52.0, variant="released", penalty_free=0.0))
    count = len(released["gates"]["values"])
    _, start = trained(base, config("taps", penalty=0))
    # before any step: λ/52 · Σ|s| = Σ|s|
    assert released["loss"][0] - start["loss"][0] == pytest.approx(count * mean, rel=1e-4)


def test_gates_have_a_rate_of_their_own_and_no_decay(base):
    """Adam's first step is the rate, whatever the gradient: B = 0, so the penalty alone decides its sign."""
    training = {"steps": 1, "warmup": 0, "weight_decay": 0.9}
    _, record = trained(base, config("taps", penalty=1.0, gate_rate=0.01, training=training))
    for value in record["gates"]["values"].values():
        assert value == pytest.approx(0.15 - 0.01, abs=1e-6)


@pytest.mark.parametrize("train", ["taps", "taps-full", "taps-joint"])
def test_a_killed_training_ends_with_the_same_adapter(base, train, tmp_path):
    settings = partly(train, variant="released", penalty_free=0.5, training={"gradient_accumulation": 2})
    tasks = tiny_tasks(2 if train == "taps-joint" else 1)
    given = tasks if len(tasks) > 1 else tasks[0]
    finetune(base, given, settings, out=tmp_path / "whole")
    killed_at, steps = (23 if train == "taps-joint" else 5), []

    def kill(step, total, loss):
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        finetune(base, given, settings, out=tmp_path / "again", scratch=tmp_path / "scratch", on_step=kill)
    finetune(
        base,
        given,
        settings,
        out=tmp_path / "again",
        scratch=tmp_path / "scratch",
        on_step=lambda step, total, _: steps.append((step, total)),
    )
    total = 24 if train == "taps-joint" else 6  # of two tasks: 12 together, then 6 each
    assert steps[-2:] == [(total - 1, total), (total, total)]
    assert len(steps) < total
    assert not (tmp_path / "scratch").exists()
    for task in tasks:
        whole, again = (load(tmp_path / n / (task.name if len(tasks) > 1 else "")) for n in ("whole", "again"))
        same(whole, again)
        assert whole.metadata.gates == again.metadata.gates


def test_tasks_share_the_jointly_trained_adapter(base):
    """With every gate closed, a task's adapter is the joint LoRA of as many steps, bit for bit."""
    tasks, steps = tiny_tasks(2), {"steps": 8}
    closed = config("taps-joint", penalty=1e4, gate_rate=0.05, training=steps)
    bench = Bench(base)
    made = mode_of(closed).train(bench, tasks, closed)
    twice = config("joint-lora", training={"steps": 16})
    joint = mode_of(twice).train(Bench(base), tasks, twice)["task0"]
    for name, adapter in made.items():
        same(adapter, joint)
        assert set(adapter.metadata.gates.closed) == adapter.metadata.gates.values.keys()
        assert len(bench.records[name]["joint"]["loss"]) == 16
        assert len(bench.records[name]["loss"]) == 8


def test_a_tasks_own_layers_are_added_to_the_shared_ones(base, tmp_path):
    tasks = tiny_tasks(2)
    made = finetune(base, tasks, partly("taps-joint"), out=tmp_path)
    ranks = {n: {s: u.factors().rank for s, u in a.updates.items()} for n, a in made.items()}
    for task in tasks:
        adapter = made[task.name]
        closed = set(adapter.metadata.gates.closed)
        assert closed
        assert ranks[task.name] == {site: 2 if site in closed else 4 for site in adapter.updates}
        assert adapter.metadata.joint == ["task0", "task1"]
        record = read_json(tmp_path / task.name / "training.json")
        with mode_of(adapter).answering(base, load(tmp_path / task.name), {}) as model_of:
            found = predict(model_of(task), task.splits["validation"], 64)
        assert found.losses.mean() == pytest.approx(record["validation"][-1]["loss"], rel=1e-5)


def test_the_joint_steps_are_a_multiple(base):
    seen = []
    settings = config("taps-joint", joint_ratio=0.5)
    mode_of(settings).train(Bench(base, on_step=lambda *step: seen.append(step[:2])), tiny_tasks(2), settings)
    assert seen == [(step, 18) for step in range(1, 19)]  # 6 for both, then 6 for each


def test_a_tasks_head_goes_on_from_the_joint_one(tiny_bert, several_data):
    """Each task's own training begins with the head that the joint one left."""
    base = tangora.load_base(tiny_bert, family="text-classification")
    files = {split: str(several_data / f"{split}.jsonl") for split in ("train", "test")}
    tasks = [tangora.load_task(name, base, files, text="text", label=name) for name in ("red", "green")]
    settings = config("taps-joint", lora={"target_modules": ["query"]}, training={"steps": 2}, **STEADY)
    bench = Bench(base)
    begun = {}

    original = gating.fit

    def watched(session, gates, model_of=None):
        task = session.tasks[0]
        begun[task.name] = {n: v.clone() for n, v in model_of(task).readout.state_dict().items()}
        left = {n: v.clone() for n, v in bench.heads[task.name].items()}
        assert begun[task.name].keys() == left.keys()
        assert all(torch.equal(begun[task.name][n], left[n]) for n in left)
        return original(session, gates, model_of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gating, "fit", watched)
        mode_of(settings).train(bench, tasks, settings)
    assert list(begun) == ["red", "green"]
    assert any(not torch.equal(begun["red"][n], v) for n, v in bench.heads["red"].items())


def test_footprints_by_formula(base):
    modules = dict(base.backbone.named_modules())
    linear = {n: m for n, m in modules.items() if isinstance(m, torch.nn.Linear)}
    adapted = [m for n, m in linear.items() if n.rpartition(".")[2] in LORA["target_modules"]]
    factors = sum(2 * (m.in_features + m.out_features) for m in adapted)
    for train, times in (("taps", 1), ("taps-joint", 2)):
        size = mode_of(config(train)).footprint(base, config(train))
        expected = (len(adapted), times * factors + len(adapted), 4 * times * factors)
        assert (size.sites, size.trainable, size.size) == expected
    norms = sum(p.numel() for n, p in base.backbone.named_parameters() if "LayerNorm" in n)
    weights = sum(p.numel() for m in linear.values() for p in m.parameters())
    for norm, extra in (("train", norms), ("freeze", 0)):
        settings = config("taps-full", norms=norm)
        found = mode_of(settings).footprint(base, settings)
        assert (found.trainable, found.size) == (weights + extra + len(linear), 4 * (weights + extra))
    _, record = trained(base, config("taps-full"))
    assert record["trainable"] == weights + norms + len(linear)


def test_settings_that_cannot_be_trained_are_refused(base):
    for train in ("taps", "taps-joint"):
        settings = config(train, lora={"init": "orthogonal"})
        with pytest.raises(ModelError, match="gated layers begin at the base"):
            mode_of(settings).check(base, settings)
    settings = config("taps-joint", lora={"a_init": "per_task"})
    with pytest.raises(ModelError, match="the adapter of all tasks has one A₀"):
        mode_of(settings).check(base, settings)


def test_adapters_of_unlike_layers_are_fused(base):
    tasks = tiny_tasks(2)
    made = [finetune(base, task, partly()) for task in tasks]
    assert made[0].updates.keys() != made[1].updates.keys()
    fused = tangora.fuse(made, "average")
    for site, update in fused.updates.items():
        each = [adapter.updates[site].dense() for adapter in made if site in adapter.updates]
        torch.testing.assert_close(update.dense(), sum(each) / 2)


def test_frozen_norms_and_closed_layers_are_the_base(base):
    """The network with closed gates answers as the base does, bit for bit, in evaluation mode."""
    task = tiny_tasks(1)[0]
    bare = predict(TaskModel(base.backbone, task, base), task.splits["test"], 8).losses
    groups = weight_groups(base.backbone, "all")
    with gated_weights(groups, 0.15, 0.1) as gates:
        for group in groups.values():
            for module, name in group:
                module.parametrizations[name].original.data.add_(1.0)
        for gate in gates.values():
            gate.value.data.fill_(0.0)
        closed = predict(TaskModel(base.backbone, task, base), task.splits["test"], 8).losses
    assert (closed == bare).all()


def test_convolutions_close_and_batch_normalization_is_the_tasks_own(tiny_resnet, image_data):
    """As in the paper, but for the running statistics, which stay the base's."""
    resnet = tangora.load_base(tiny_resnet, family="image-classification")
    files = {split: str(image_data / f"{split}.npz") for split in ("train", "test")}
    labels = ["red", "green", "blue"]
    task = tangora.load_task("c", resnet, files, image="images", label="labels", labels=labels)
    before = {n: v.clone() for n, v in resnet.backbone.state_dict().items()}
    bench = Bench(resnet)
    training = {"learning_rate": 1e-2, "steps": 12}
    settings = config("taps-full", penalty=0.5, gate_start=0.11, training=training)
    adapter = mode_of(settings).train(bench, [task], settings)["c"]
    gates = adapter.metadata.gates
    assert gates.closed
    assert len(gates.closed) < len(gates.values)
    modules = dict(resnet.backbone.named_modules())
    assert all(isinstance(modules[name], torch.nn.Conv2d) for name in gates.values)
    changed = {name.rpartition(".")[0] for name in adapter.updates}
    norms = {n for n, m in modules.items() if isinstance(m, torch.nn.BatchNorm2d)}
    assert changed == norms | (gates.values.keys() - set(gates.closed))
    assert all(torch.equal(v, before[n]) for n, v in resnet.backbone.state_dict().items())
    trained_with_head = tangora.Adapter(adapter.updates, adapter.metadata, heads=bench.heads)
    with mode_of(adapter).answering(resnet, trained_with_head, {}) as model_of:
        found = predict(model_of(task), task.splits["validation"], 64)
    assert found.losses.mean() == pytest.approx(bench.records["c"]["validation"][-1]["loss"], rel=1e-5)


@pytest.mark.parametrize("train", ["taps", "taps-joint"])
def test_a_decoder_held_in_half_precision(train, tiny_llama, sum_data):
    """Its weights take no update: the shared adapter is computed beside them, and so is a task's own."""
    llama = tangora.load_base(tiny_llama, family="causal-lm", max_length=64, weights_dtype="bfloat16")
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    common = {"limit": {"validation": 2}, "max_new_tokens": 4, "metric": "exact_match"}
    names = ["one", "two"] if train == "taps-joint" else ["one"]
    tasks = [tangora.load_task(name, llama, files, **common) for name in names]
    targets = {"target_modules": ["q_proj", "down_proj"], "dropout": 0.0}
    settings = partly(train, lora=targets, training={"steps": 4})
    bench = Bench(llama)
    made = mode_of(settings).train(bench, tasks, settings)
    for task in tasks:
        adapter = made[task.name]
        assert adapter.metadata.gates.closed
        with mode_of(adapter).answering(llama, adapter, {}) as model_of:
            found = predict(model_of(task), task.splits["validation"], 64)
        assert found.losses.mean() == pytest.approx(bench.records[task.name]["validation"][-1]["loss"], rel=1e-4)
