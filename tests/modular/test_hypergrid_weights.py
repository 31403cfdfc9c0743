"""Grids of gates: blocks of weights, the gates of every variant, and which layers have them."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DistilBertConfig,
    DistilBertModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from tangora.config.hypergrid import HyperGridSettings
from tangora.errors import ModelError
from tangora.modular.hypergrid import Grids, HyperGrid, feed_forward, gated, layers_of
from tangora.modular.network import attached
from tangora.testing._tiny import tiny_base

VARIANTS, GATES = ["GL", "L", "L2", "LG"], ["exp", "sigmoid2", "tanh"]
FORMULAS = {
    "L": lambda e, rows, columns: e * rows,
    "L2": lambda e, rows, columns: e * (rows + columns),
    "LG": lambda e, rows, columns: e * rows + columns,
    "GL": lambda e, rows, columns: rows + e * columns,
}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle(weight, grid):
    """``W ∘ repeat(H)`` of the paper, whose W is [in, out], by a Kronecker product with ones."""
    out, inside = weight.shape
    rows, columns = grid.shape
    return weight * torch.kron(grid, torch.ones(inside // rows, out // columns)).T


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (8, 6), (4, 1)])
def test_blocks_are_those_of_a_kronecker_product(grid):
    weight, gates = drawn(6, 8), drawn(*grid, seed=1)
    assert torch.equal(gated(weight, gates), oracle(weight, gates))


def test_special_grids():
    weight, x = drawn(6, 8), drawn(5, 8, seed=1)
    one = torch.tensor([[2.5]])
    assert torch.equal(gated(weight, one), 2.5 * weight)
    inputs, outputs = drawn(8, 1, seed=2), drawn(1, 6, seed=3)
    torch.testing.assert_close(x @ gated(weight, inputs).T, (x * inputs[:, 0]) @ weight.T)
    torch.testing.assert_close(x @ gated(weight, outputs).T, (x @ weight.T) * outputs[0])


class One(nn.Module):
    """One layer, the same every time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 6)

    def forward(self, x):
        return self.layer(x)


def network_of(variant, gate, grid=(2, 3), width=5, tasks=2):
    settings = HyperGridSettings(variant=variant, gate=gate, rows=grid[0], columns=grid[1])
    return HyperGrid(["layer"], settings, width, tasks)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_begins_at_the_base_and_computes_the_equations(variant, gate):
    model = One()
    x, layer = drawn(4, 8), model.layer
    bare = model(x)
    network = network_of(variant, gate)
    with attached(model, network):
        for task in (0, 1):
            network.task = task
            assert torch.equal(model(x), bare), "u or v is zero: bit for bit"
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(drawn(*parameter.shape, seed=parameter.numel()))
        factors = network.factors.layer
        answers = []
        for task in (0, 1):
            network.task = task
            e = network.embedding[task]
            u, v = (
                None if (f := getattr(factors, name, None)) is None else f @ e if f.ndim == 2 else f for name in "uv"
            )
            z = torch.outer(u, torch.ones(1) if v is None else v)
            h = {"sigmoid2": 2 * torch.sigmoid(z), "tanh": 1 + torch.tanh(z), "exp": torch.exp(z)}[gate]
            expected = nn.functional.linear(x, oracle(layer.weight, h), layer.bias)
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
            answers.append(model(x))
            fixed = Grids(["layer"], tuple(h.shape))
            fixed.load_state_dict({"grids.layer.log_gates": network.grids(task)["layer"]})
            other = One()
            with attached(other, fixed):
                assert torch.equal(other(x), model(x)), "a fixed grid gives the same bits"
        assert not torch.equal(*answers), "the task decides"
    assert torch.equal(model(x), bare)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_what_is_zero_first(variant):
    model, network = One(), network_of(variant, "sigmoid2")
    model.requires_grad_(False)
    with attached(model, network):
        model(drawn(4, 8)).square().sum().backward()
        zeros = [n for n, p in network.named_parameters() if not p.detach().any()]
        moved = [n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()]
    assert zeros == moved == ["factors.layer.u" if variant == "L" else "factors.layer.v"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_by_formula_for_t5_base(variant):
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12))
        layers = feed_forward(model, None, (128, 256))
        settings = HyperGridSettings(variant=variant, rows=128, columns=256)
        network = HyperGrid(list(layers), settings, 768, 16)
    matrices = 2 * (12 + 12)  # wi and wo of each block
    assert len(layers) == matrices
    expected = matrices * FORMULAS[variant](768, 128, 256) + 16 * 768
    assert sum(p.numel() for p in network.parameters()) == expected


SIZE = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def backbones():
    images = {"image_size": 8, "patch_size": 4}
    yield "bert", BertModel(BertConfig(vocab_size=9, **SIZE)), [(8, 16), (16, 8)]
    yield "vit", ViTModel(ViTConfig(**SIZE, **images)), [(8, 16), (16, 8)]
    yield "clip", CLIPVisionModel(CLIPVisionConfig(**SIZE, **images)), [(8, 16), (16, 8)]
    small = {"dim": 8, "hidden_dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 9}
    yield "distilbert", DistilBertModel(DistilBertConfig(**small)), [(8, 16), (16, 8)]
    t5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    gate = T5Config(**t5, feed_forward_proj="gated-gelu")
    yield "t5", T5ForConditionalGeneration(gate), [(8, 16), (8, 16), (16, 8)] * 2


def test_the_feed_forward_layers_of_architectures():
    with torch.device("meta"):
        for name, model, widths in backbones():
            found = feed_forward(model, None)
            assert [(m.in_features, m.out_features) for m in found.values()] == widths, name
            assert not any("attention" in site.lower().rpartition(".output")[0][-9:] for site in found), name


def test_what_cannot_have_grids_is_refused():
    backbone = tiny_base().backbone
    with pytest.raises(ModelError, match=r"16 inputs of encoder.layer.0.intermediate.dense are not divided into 3 blo"):
        feed_forward(backbone, None, (3, 1))
    with pytest.raises(ModelError, match=r"32 outputs of .* are not divided into 5 blocks.*Choose a divisor of 32"):
        feed_forward(backbone, ["intermediate.dense"], (1, 5))
    with pytest.raises(ModelError, match=r"a target module matches nothing, got 'fc1'"):
        feed_forward(backbone, ["dense", "fc1"])
    with pytest.raises(ModelError, match="only linear layers have grids, got 'LayerNorm'"):
        feed_forward(backbone, ["output.LayerNorm"])
    with pytest.raises(ModelError, match="the feed-forward layers are not known"):
        feed_forward(nn.Sequential(nn.Linear(2, 2)), None)
    with pytest.raises(ModelError, match=r"the model has no such layer at encoder\.layer\.7\.x"):
        layers_of(backbone, ["encoder.layer.7.x"])
    with pytest.raises(ValidationError, match="width is that of a task's embedding"):
        HyperGridSettings(condition="first-token", width=4)


def test_changes_of_the_base_are_added_and_taken_back():
    backbone = tiny_base().backbone
    name = "encoder.layer.0.output.dense.weight"
    before = backbone.get_parameter(name).clone()
    network = Grids([name.removesuffix(".weight")], (2, 2), {name: before.shape})
    with torch.no_grad():
        network.changes.get_parameter(name).add_(0.25)
    with attached(backbone, network):
        assert torch.equal(backbone.get_parameter(name), before + 0.25)
    assert torch.equal(backbone.get_parameter(name), before)


def test_a_copy_of_a_gated_model_is_gated_by_its_own_weights():
    backbone = tiny_base().backbone
    site = "encoder.layer.0.output.dense"
    with attached(backbone, Grids([site], (2, 2))):
        other = copy.deepcopy(backbone)
    ids = torch.arange(6).reshape(2, 3)
    before = other(input_ids=ids).last_hidden_state
    with torch.no_grad():
        other.get_submodule(site).weight.zero_()
    assert not torch.equal(other(input_ids=ids).last_hidden_state, before)
