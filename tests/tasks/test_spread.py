"""Bases that are spread over devices: the mechanics on one device, and with a second device that has shapes alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import tangora
from tangora.errors import ArgumentError, ModelError
from tangora.evaluation.evaluator import answering
from tangora.storage.spread import automatic, is_spread, move_, places_of, spread_
from tangora.tasks import load_base
from tangora.tasks.base import weights_fingerprint
from tangora.tasks.model import TaskModel, predict

CPU = torch.device("cpu")
PARTS = {
    "answer": ("shared", "encoder", "decoder", "lm_head"),
    "language": ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head"),
    "text": ("embeddings", "encoder.layer.0", "encoder.layer.1"),
}
LAST = {
    "answer": ("encoder.block.1", "decoder.block.1"),
    "language": ("model.layers.1",),
    "text": ("encoder.layer.1",),
}
LORA = {"answer": ["q", "v"], "language": ["q_proj", "down_proj"], "text": ["query", "value"]}


def spread(base, places, **settings):
    return load_base(base.config.model_copy(update={"device_map": places, **settings}))


def on_cpu(kind):
    return dict.fromkeys(PARTS[kind], "cpu")


@pytest.mark.parametrize("form", [{}, {"weights_dtype": "bfloat16"}, {"quantization": "8bit"}])
@pytest.mark.parametrize("kind", sorted(PARTS))
@pytest.mark.parametrize("mode", ["lora", "l-lora-moved"])
def test_training_and_scores_are_those_without_a_map(families, kind, mode, form):
    case = families[kind]
    parts, whole = spread(case.base, on_cpu(kind), **form), spread(case.base, None, **form)
    assert is_spread(parts.backbone)
    assert parts.identity == whole.identity
    assert places_of(parts.backbone) == on_cpu(kind)
    a, b = (tangora.finetune(base, case.task, case.config(mode), progress=False) for base in (parts, whole))
    assert a.updates.keys() == b.updates.keys()
    assert all(torch.equal(update.dense(), b.updates[site].dense()) for site, update in a.updates.items())
    scores = []
    for base in (parts, whole):
        with answering(a, base) as model_of:
            scores.append(predict(model_of(case.task), case.task.splits["test"], 4))
    assert scores[0].plain == scores[1].plain
    np.testing.assert_array_equal(scores[0].losses, scores[1].losses)
    assert weights_fingerprint(parts.backbone) == parts.fingerprint


class Crossing(torch.autograd.Function):
    """A copy between the CPU and torch's device ``meta``, which has shapes, but no values: they become zeros."""

    @staticmethod
    def forward(ctx, value, device):
        ctx.origin = value.device
        return crossed(value, device)

    @staticmethod
    def backward(ctx, gradient):
        return crossed(gradient, ctx.origin), None


def crossed(value, device):
    return torch.zeros(value.shape, dtype=value.dtype) if value.is_meta and device.type == "cpu" else value.to(device)


@pytest.fixture
def crossing(monkeypatch):
    monkeypatch.setattr("tangora.storage.spread._to", lambda value, device: Crossing.apply(value, device))


@pytest.mark.parametrize("form", [{}, {"weights_dtype": "bfloat16"}, {"quantization": "8bit"}])
@pytest.mark.parametrize("kind", sorted(PARTS))
def test_inputs_follow_the_weights_and_gradients_return(families, kind, form, crossing):
    """torch refuses an operation on two devices, so that each one has all of its inputs where its weights are."""
    case = families[kind]
    base = load_base(case.base.config.model_copy(update=form))
    model = TaskModel(base.backbone, case.task, base).eval()
    batch = case.task.splits["test"].batches(2, model.collator)[0][1]
    get_peft_model(base.backbone, LoraConfig(r=2, target_modules=LORA[kind], init_lora_weights=False))
    spread_(base.backbone, {"": "cpu", **dict.fromkeys(LAST[kind], "meta")}, CPU)
    factors = {name: p for name, p in base.backbone.named_parameters() if "lora_" in name}
    assert {p.device.type for p in factors.values()} == {"cpu", "meta"}
    targets = batch["labels"] if "labels" in batch else torch.zeros(2, dtype=torch.long)
    losses = model.losses({name: value for name, value in batch.items() if name != "labels"}, targets)
    assert losses.device == CPU
    losses.sum().backward()
    assert all(p.grad is not None and p.grad.device == p.device for p in factors.values())
    for module in base.backbone.modules():
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks_with_kwargs.clear()
    with pytest.raises(RuntimeError, match=r"device|meta"):
        model.losses({name: value for name, value in batch.items() if name != "labels"}, targets)


def test_a_network_in_two_parts(crossing):
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    model = spread_(nn.Sequential(first, second), {"": "cpu", "1": "meta"}, CPU)
    assert (first.weight.device.type, second.weight.device.type, second.bias.device.type) == ("cpu", "meta", "meta")
    assert model(torch.ones(1, 4)).device == CPU
    around = nn.Module()
    around.part, around.other = model, nn.Linear(2, 2)
    around.register_buffer("own", torch.ones(1))
    move_(around, torch.device("meta"))
    assert (around.own.device.type, around.other.weight.device.type) == ("meta", "meta")
    assert (first.weight.device.type, second.weight.device.type) == ("cpu", "meta")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"": "cpu", "modell": "cpu"}, "no such part, got 'modell' at base.device_map"),
        ({"model.layers": "cpu"}, "a weight has no device, got 'model.embed_tokens.weight'"),
        ({"": "cpu", "model.layers.0": "disk"}, "weights on disk cannot be computed with.*base.quantization"),
        (
            {"": "cpu", "model.norm": "cuda:7"},
            "the device cannot be used .*got 'cuda:7' at base.device_map, model.norm",
        ),
        ({"": "cpu", "lm_head": "meta"}, "lm_head.weight shares its weight with model.embed_tokens.weight"),
        ({"": "meta"}, "inputs are on another device than the first weight.*machine.device: meta"),
    ],
)
def test_maps_that_do_not_fit_are_refused(families, places, message):
    with pytest.raises(ModelError, match=message):
        spread(families["language"].base, places)


def test_modes_that_need_one_device_are_refused(families):
    case = families["text"]
    base = spread(case.base, on_cpu("text"))
    for mode in ("full", "full-tangent", "tangent"):
        with pytest.raises(ModelError, match=rf"mode {mode} needs the model on one device at base\.device_map"):
            tangora.finetune(base, case.task, case.config(mode), progress=False)
    adapter = tangora.finetune(case.base, case.task, case.config("tangent", steps=1), progress=False)
    with pytest.raises(ModelError, match="an expansion needs the model on one device"):
        tangora.evaluate(adapter, base, [case.task])


def test_an_adapted_layer_with_an_entry_of_its_own_is_refused(families):
    case = families["text"]
    site = "encoder.layer.0.attention.self.query"
    base = spread(case.base, {"": "cpu", site: "cpu"})
    with pytest.raises(ModelError, match=rf"an adapted layer has an entry of its own, got '{site}'"):
        tangora.finetune(base, case.task, case.config("lora"), progress=False)
    assert weights_fingerprint(base.backbone) == base.fingerprint


def test_several_processes_are_refused(families, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match=r"several processes cannot share spread models at base\.device_map"):
        spread(families["text"].base, on_cpu("text"))


def test_the_map_is_not_recorded_with_an_adapter(families, tmp_path):
    case = families["text"]
    base = spread(case.base, on_cpu("text"))
    config = {name: getattr(base.config, name) for name in ("pooling", "max_length")}
    assert config
    tangora.finetune(base, case.task, case.config("lora", steps=1), out=tmp_path / "adapter", progress=False)
    assert "device_map" not in (tmp_path / "adapter" / "heads" / f"{case.task.name}.json").read_text(encoding="utf-8")
    given = tangora.predictor(tmp_path / "adapter", base=base)(case.rows[:3])
    assert given.answers == tangora.predictor(tmp_path / "adapter")(case.rows[:3]).answers


def test_without_accelerators_everything_is_on_the_cpu(families, monkeypatch):
    base = families["language"].base
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert automatic(base.backbone, "auto") == {"": "cpu"}
    assert {p.device for p in spread(base, "auto").backbone.parameters()} == {CPU}


def test_accelerate_divides_a_model_by_its_blocks(families, monkeypatch):
    model = copy.deepcopy(families["language"].base.backbone)
    size = sum(p.numel() * 4 for p in model.model.layers[0].parameters())
    tied = model.lm_head.weight.numel() * 4
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr("accelerate.utils.modeling.get_max_memory", lambda *_: {0: tied + 2 * size, 1: 10 * size})
        found = automatic(model, "sequential")
        with pytest.raises(ModelError, match=r"does not name its blocks, got 'Sequential' at base\.device_map"):
            automatic(nn.Sequential(nn.Linear(2, 2)), "auto")
    assert {found[name] for name in found if "layers" in name} == {"0", "1"}
    spread_(model, {name: "meta" if place == "1" else "cpu" for name, place in found.items()}, CPU)
    assert {p.device.type for p in model.parameters()} == {"cpu", "meta"}
