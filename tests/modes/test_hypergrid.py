"""HyperGrid: trained jointly, fixed for each task, fused, resumed, and exported as changes of weights."""

from __future__ import annotations

import pytest
import torch

import tangora
from tangora.adapters.adapter import load
from tangora.config.settings import FinetuneConfig
from tangora.errors import AdapterError, ModelError
from tangora.modes.contract import Bench, mode_of
from tangora.modes.finetuning import finetune
from tangora.modes.grids import as_weights
from tangora.support.files import read_json
from tangora.tasks.model import predict
from tangora.testing._tiny import tiny_base, tiny_tasks


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def config(*, training=None, **keys):
    chosen = {"steps": 12, "batch_size": 4, "learning_rate": 5e-2, "checkpoint_every": 4}
    chosen |= training or {}
    return FinetuneConfig(mode="m", train="hypergrid", training=chosen, **{"rows": 4, "columns": 8, **keys}).resolved()


def answers(base, adapter, task, split="test"):
    with mode_of(adapter).answering(base, adapter, {}) as model_of:
        return torch.as_tensor(predict(model_of(task), task.splits[split], 64).losses)


def mean_validation(base, made, tasks):
    return sum(float(answers(base, made[t.name], t, "validation").mean()) for t in tasks) / len(tasks)


def test_a_step_at_the_default_rate_saturates_no_gate(base):
    """It moves an entry of v by at most 5e-4 · ‖x‖₁ ≈ 5e-4 · 0.8 · 384 = 0.15."""
    chosen = {"steps": 1, "batch_size": 4, "learning_rate": None, "schedule": "constant_with_warmup", "warmup": 0.0}
    made = finetune(base, tiny_tasks(2), config(width=384, training=chosen))
    grids = [u.dense().abs() for one in made.values() for n, u in one.updates.items() if n.startswith("grids.")]
    # with |u| up to 4, z is up to 0.6, and log 2σ(-0.6) = -0.36; at 5e-3 it is 10 times that, and log 2σ(-6) = -5.3
    assert 0.01 < max(float(grid.max()) for grid in grids) < 0.4


KEYS = [
    {"variant": "GL"},
    {"variant": "L", "gate": "exp"},
    {"variant": "LG", "gate": "tanh"},
    {"base": "train", "base_rate": 1e-3},
    {"target_modules": ["query", "intermediate.dense"], "width": 3},
    {"sampling": {"by": "uncertainty"}},
    {"sampling": {"by": "uniform", "mixed": True}},
]


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_the_fixed_grids_answer_as_the_trained_network(base, keys, tmp_path):
    tasks, settings = tiny_tasks(2), config(**keys)
    made = finetune(base, tasks, settings, out=tmp_path)
    record = read_json(tmp_path / "task0" / "training.json")
    # the last validation was of the dynamic network: the mean over the tasks
    assert mean_validation(base, made, tasks) == pytest.approx(record["validation"][-1]["loss"], rel=1e-6)
    first, second = (made[task.name] for task in tasks)
    grids = {n for n in first.updates if n.startswith("grids.")}
    shape = (4, 1 if keys.get("variant") == "L" else 8)
    assert all(first.updates[n].shape == shape for n in grids)
    assert any(not torch.equal(first.updates[n].dense(), second.updates[n].dense()) for n in grids)
    changes = {n for n in first.updates if n.startswith("changes.")}
    assert bool(changes) == (keys.get("base") == "train")
    assert all(torch.equal(first.updates[n].dense(), second.updates[n].dense()) for n in changes)
    assert first.updates.keys() == grids | changes
    # saved, loaded, and in a network of its own
    read = load(tmp_path / "task0")
    assert torch.equal(answers(base, read, tasks[0]), answers(base, first, tasks[0]))
    ids = torch.arange(6).reshape(2, 3)
    with mode_of(first).answering(base, first, {}) as model_of:
        expected = model_of(tasks[0]).backbone(input_ids=ids).last_hidden_state
    loaded = tangora.load_model(tmp_path / "task0", tiny_base())
    assert torch.equal(loaded(input_ids=ids).last_hidden_state, expected)


@pytest.mark.parametrize("keys", [{}, {"base": "train", "base_rate": 1e-3}], ids=["frozen", "train"])
def test_as_changes_of_weights_it_answers_the_same(base, keys, tmp_path):
    tasks = tiny_tasks(2)
    made = mode_of(config()).train(Bench(base), tasks, config(**keys))
    for task in tasks:
        full = as_weights(made[task.name], base.backbone)
        assert (full.metadata.kind, full.metadata.train, full.metadata.modules) == ("full", "full", None)
        full.save(tmp_path / task.name)
        # a sum of base and change: a rounding of each weight
        expected = answers(base, made[task.name], task)
        torch.testing.assert_close(answers(base, load(tmp_path / task.name), task), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AdapterError, match="which layers have grids"):
        as_weights(tangora.Adapter({}), base.backbone)


def test_training_lowers_the_loss_and_the_base_stays(base):
    tasks = tiny_tasks(2)
    before = {n: p.clone() for n, p in base.backbone.state_dict().items()}
    for keys in ({}, {"base": "train", "base_rate": 1e-3}):
        bench = Bench(base)
        settings = config(training={"steps": 60, "batch_size": 12, "learning_rate": 1e-2}, **keys)
        mode_of(settings).train(bench, tasks, settings)
        losses = bench.records["task0"]["loss"]
        assert sum(losses[-6:]) < sum(losses[:6])
        after = base.backbone.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[n], after[n]) for n in before)
        assert not any(hasattr(p, "tangora_own_rate") for p in base.backbone.parameters())


def test_the_average_is_the_geometric_mean_of_the_gates(base, tmp_path):
    tasks = tiny_tasks(2)
    made = mode_of(config()).train(Bench(base), tasks, config())
    fused = tangora.fuse([made["task0"], made["task1"]], "average")
    assert fused.metadata.modules == made["task0"].metadata.modules
    for name, update in fused.updates.items():
        gates = [made[task.name].updates[name].dense().exp() for task in tasks]
        torch.testing.assert_close(update.dense().exp(), (gates[0] * gates[1]).sqrt())
    fused.save(tmp_path / "fused")
    read = load(tmp_path / "fused")
    expected = answers(base, fused, tasks[0])
    assert torch.equal(answers(base, read, tasks[0]), expected)
    assert not torch.equal(answers(base, made["task0"], tasks[0]), expected)
    other = mode_of(config()).train(Bench(base), tasks, config(rows=2))
    with pytest.raises(tangora.TangoraError, match="built in another way"):
        tangora.fuse([made["task0"], other["task1"]], "average")


def test_exp_gates_add_their_arguments(base):
    """Each task's argument has rank 1, their sum at most the number of tasks."""
    tasks, settings = tiny_tasks(2), config(gate="exp", columns=4)
    made = mode_of(settings).train(Bench(base), tasks, settings)
    fused = tangora.fuse(list(made.values()), "task_arithmetic", weights=1.0)
    for name, update in fused.updates.items():
        each = [adapter.updates[name].dense() for adapter in made.values()]
        torch.testing.assert_close(update.dense(), each[0] + each[1])
        singular = [torch.linalg.svdvals(z.double()) for z in (*each, update.dense())]
        # the argument is rounded to float32: a relative 1e-7 of the largest singular value, with a margin
        assert [int((s > 1e-5 * s[0]).sum()) for s in singular] in ([1, 1, 2], [1, 1, 1])


@pytest.mark.parametrize("keys", [{}, {"base": "train"}], ids=["frozen", "train"])
def test_a_killed_training_ends_with_the_same_adapters(base, keys, tmp_path):
    tasks, settings, steps = tiny_tasks(2), config(**keys), []
    whole = finetune(base, tasks, settings)

    def kill(step, total, loss):
        if step == 10:
            raise Killed

    with pytest.raises(Killed):
        finetune(base, tasks, settings, scratch=tmp_path / "scratch", on_step=kill)
    again = finetune(base, tasks, settings, scratch=tmp_path / "scratch", on_step=lambda step, *_: steps.append(step))
    assert steps == [9, 10, 11, 12]
    assert {n: a.fingerprint for n, a in again.items()} == {n: a.fingerprint for n, a in whole.items()}


def t5_tasks(base, text_data, prompts):
    files = {split: str(text_data / f"{split}.jsonl") for split in ("train", "test")}
    common = {"target": "{name}", "metric": "exact_match", "limit": {"test": 4}}
    return [tangora.load_task(name, base, files, prompt=prompt, **common) for name, prompt in prompts.items()]


def test_the_first_token_describes_the_task(tiny_t5, text_data, tmp_path):
    base = tangora.load_base(tiny_t5, family="text-to-text", max_new_tokens=2)
    tasks = t5_tasks(base, text_data, {"one": "this {text}", "two": "photo {text}"})
    for keys in ({}, {"base": "train", "base_rate": 1e-3}):
        settings = config(condition="first-token", training={"steps": 4}, **keys)
        bench = Bench(base)
        made = mode_of(settings).train(bench, tasks, settings)
        assert mean_validation(base, made, tasks) == pytest.approx(
            bench.records["one"]["validation"][-1]["loss"], rel=1e-6
        )
        sites = made["one"].metadata.modules["sites"]
        assert len(sites) == 3 * 2 * 2
        assert any(not torch.equal(made["one"].updates[n].dense(), u.dense()) for n, u in made["two"].updates.items())
        made["one"].save(tmp_path / f"one-{len(keys)}")
        read = load(tmp_path / f"one-{len(keys)}")
        assert torch.equal(answers(base, read, tasks[0]), answers(base, made["one"], tasks[0]))
    settings = config(condition="first-token")
    for prompts, message in (
        ({"one": "{text}", "two": "photo {text}"}, r"the rows of one begin with \d+ different tokens"),
        ({"one": "this {text}", "two": "this is {text}"}, "one and two begin with the same token"),
    ):
        with pytest.raises(ModelError, match=message):
            mode_of(settings).train(Bench(base), t5_tasks(base, text_data, prompts), settings)


def test_what_has_no_grids_is_refused(base, tiny_llama, tiny_vit, tiny_resnet):
    mode = mode_of(config())
    llama = tangora.load_base(tiny_llama, family="causal-lm", max_length=64)
    with pytest.raises(ModelError, match=r"defined for encoders and encoder-decoders.*LlamaForCausalLM"):
        mode.check(llama, config())
    half = tangora.load_base(tiny_vit, family="image-classification", weights_dtype="bfloat16")
    with pytest.raises(ModelError, match="needs the base's weights in float32"):
        mode.check(half, config())
    vit = tangora.load_base(tiny_vit, family="image-classification")
    mode.check(vit, config())
    with pytest.raises(ModelError, match="the base reads no tokens"):
        mode.check(vit, config(condition="first-token"))
    resnet = tangora.load_base(tiny_resnet, family="image-classification")
    with pytest.raises(ModelError, match="the feed-forward layers are not known"):
        mode.check(resnet, config())
    with pytest.raises(ModelError, match="the gates would be those of the last task"):
        mode.check(base, config(training={"gradient_checkpointing": True}))
    with pytest.raises(ModelError, match=r"16 inputs of .* are not divided into 7 blocks"):
        mode.check(base, config(rows=7))
    with pytest.raises(ModelError, match="begin with the same token"):
        settings = config(condition="first-token")
        mode.train(Bench(base), tiny_tasks(2), settings)


@pytest.mark.parametrize("variant", ["GL", "L", "L2", "LG"])
def test_footprints_by_formula(base, variant):
    """Two layers of two matrices each; an embedding of one task, of width e."""
    settings = config(variant=variant, width=5)
    size = mode_of(settings).footprint(base, settings)
    e, rows, columns = 5, 4, 8
    each = {"L": e * rows, "L2": e * (rows + columns), "LG": e * rows + columns, "GL": rows + e * columns}[variant]
    stored = rows * (1 if variant == "L" else columns)
    assert (size.sites, size.trainable, size.size, size.adapted) == (4, 4 * each + e, 4 * 4 * stored, 4 * 16 * 32)
    bench = Bench(base)
    mode_of(settings).train(bench, tiny_tasks(3), settings)
    assert bench.records["task0"]["trainable"] == 4 * each + 3 * e
    whole = config(variant=variant, width=5, base="train")
    numbers = sum(p.numel() for p in base.backbone.parameters())
    trained = mode_of(whole).footprint(base, whole)
    assert (trained.trainable, trained.size) == (size.trainable + numbers, size.size + 4 * numbers)
