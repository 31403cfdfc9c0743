"""Gates of layers: their gradients, what open and closed layers compute, and which parameters a gate is for."""

from __future__ import annotations

import peft
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ResNetConfig, ResNetModel
from transformers.pytorch_utils import Conv1D

from tangora.config.gated import GatedAdapterSettings
from tangora.modular.gated_lora import gate_lora_
from tangora.modular.gated_weights import gated_weights, weight_groups
from tangora.modular.layer_gates import LayerGate, Penalty
from tangora.testing._tiny import tiny_base


def test_the_indicator_is_a_step_with_the_derivative_one():
    for value, expected in ((0.15, 1.0), (0.1, 1.0), (0.0999, 0.0), (-3.0, 0.0)):
        gate = LayerGate(value, 0.1)
        out = gate()
        (3.0 * out).backward()
        assert (out.item(), gate.value.grad.item(), gate.is_open) == (expected, 3.0, bool(expected))


def test_the_penalty_is_a_mean_of_sizes_or_divided_as_released():
    gates = {"a": LayerGate(0.5, 0.1), "b": LayerGate(-0.25, 0.1), "c": LayerGate(0.25, 0.1)}
    for divisor, share in ((None, 1 / 3), (52, 1 / 52)):
        penalty = Penalty(gates, 2.0, divisor)
        assert penalty() == 0.0
        penalty.active = True
        cost = penalty()
        assert cost.item() == pytest.approx(2.0 * share * 1.0)
        gradients = torch.autograd.grad(cost, [gate.value for gate in gates.values()])
        torch.testing.assert_close(torch.stack(gradients), 2.0 * share * torch.tensor([1.0, -1.0, 1.0]))


def test_settings():
    released = GatedAdapterSettings(variant="released")
    assert (GatedAdapterSettings().free, released.free) == (0.0, 3 / 31)
    assert GatedAdapterSettings(variant="released", penalty_free=0.5).free == 0.5
    with pytest.raises(ValidationError, match="gate_start must be at least the threshold"):
        GatedAdapterSettings(gate_start=0.05)


class Layers(nn.Module):
    """An embedding, a Conv1D and a linear layer, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "layers"}
        self.embed, self.conv, self.linear = nn.Embedding(7, 4), Conv1D(5, 4), nn.Linear(5, 3)

    def forward(self, ids):
        return self.linear(torch.tanh(self.conv(self.embed(ids))))


def gated(value, threshold=0.1):
    """A model of all kinds of LoRA layers with factors that are not zero, its gates, and an input."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["embed", "conv", "linear"])
    model = peft.get_peft_model(Layers(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return model, gate_lora_(model, value, threshold), torch.randint(7, (6, 2))


@pytest.mark.parametrize("value", [0.15, 0.05])
def test_the_gradient_of_a_gate_is_that_of_its_weight_along_the_change(value):
    """dL/ds = ⟨dL/dW, δ⟩ for δ = scaling · BA, open or closed; dL/dδ = 0 if closed."""
    model, gates, ids = gated(value)
    goal = torch.randn(6, 2, 3)
    ((model(ids) - goal) ** 2).sum().backward()
    deltas = {s: model.base_model.model.get_submodule(s).get_delta_weight("default").detach() for s in gates}
    plain = Layers()
    plain.load_state_dict(
        {
            n.replace("base_model.model.", "").replace(".base_layer", ""): p
            for n, p in model.state_dict().items()
            if "lora_" not in n and "gate" not in n
        }
    )
    with torch.no_grad():
        for site, delta in deltas.items():
            plain.get_submodule(site).weight += delta if value >= 0.1 else 0
    ((plain(ids) - goal) ** 2).sum().backward()
    for site, gate in gates.items():
        expected = (plain.get_submodule(site).weight.grad * deltas[site]).sum()
        torch.testing.assert_close(gate.value.grad, expected, rtol=1e-4, atol=1e-4)
        layer = model.base_model.model.get_submodule(site)
        factors = [p.grad for n, p in layer.named_parameters() if "lora_" in n]
        assert len(factors) == 2
        assert all(bool(grad.any()) == (value >= 0.1) for grad in factors)


@pytest.mark.parametrize("value", [0.15, 0.05])
def test_gated_layers_compute_what_peft_or_the_base_computes(value):
    model, _, ids = gated(value)
    with torch.no_grad():
        found = model(ids)
        for layer in model.modules():
            if hasattr(layer, "lora_variant"):
                layer.lora_variant.clear()
        if value < 0.1:
            model.disable_adapter_layers()
        expected = model(ids)
    # ±0: a closed gate adds a zero of either sign
    assert torch.equal(found, expected)


def test_a_gate_opens_again_when_its_gradient_says_so():
    """The layer is closed and its change lowers the loss: plain gradient descent on s alone lifts it over τ."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    groups = {"layer": [(layer, "weight")]}
    x, change = torch.randn(8, 4), torch.randn(4, 4)
    with gated_weights(groups, 0.05, 0.1) as gates:
        trained = layer.parametrizations["weight"].original
        base = trained.detach().clone()
        trained.data.add_(change)
        goal = x @ (base + change).T
        loss = ((layer(x) - goal) ** 2).mean()
        loss.backward()
        (gate,) = gates.values()
        assert not gate.is_open
        assert gate.value.grad < 0
        assert trained.grad.count_nonzero() == 0
        gate.value.data -= 0.05 / gate.value.grad.abs() * gate.value.grad
        assert gate.is_open
        torch.testing.assert_close(layer(x), goal)


@pytest.mark.parametrize("layers", ["linear", "all"])
def test_closed_weights_are_those_of_before_and_open_ones_the_trained(layers):
    backbone = tiny_base().backbone
    before = {n: p.detach().clone() for n, p in backbone.named_parameters()}
    objects = {n: id(p) for n, p in backbone.named_parameters()}
    kinds = {n: type(m) for n, m in backbone.named_modules()}
    ids = torch.arange(6).reshape(2, 3)
    bare = backbone(input_ids=ids).last_hidden_state
    groups = weight_groups(backbone, layers)
    with gated_weights(groups, 0.15, 0.1) as gates:
        assert torch.equal(backbone(input_ids=ids).last_hidden_state, bare)
        with torch.no_grad():
            for group in groups.values():
                for module, name in group:
                    module.parametrizations[name].original.add_(0.1)
        assert not torch.equal(backbone(input_ids=ids).last_hidden_state, bare)
        for gate in gates.values():
            gate.value.data.fill_(0.09)
        assert torch.equal(backbone(input_ids=ids).last_hidden_state, bare)
        list(gates.values())[1].value.data.fill_(0.1)
    opened = {id(getattr(module, name)) for module, name in list(groups.values())[1]}
    assert opened
    assert list(objects) == [n for n, _ in backbone.named_parameters()], "names and their order"
    for name, parameter in backbone.named_parameters():
        assert id(parameter) == objects[name]
        assert torch.equal(parameter, before[name] + 0.1 if id(parameter) in opened else before[name]), name
    assert kinds == {n: type(m) for n, m in backbone.named_modules()}


def test_an_error_in_the_block_takes_the_gates_off():
    backbone = tiny_base().backbone
    names = [n for n, _ in backbone.named_parameters()]
    with pytest.raises(ZeroDivisionError), gated_weights(weight_groups(backbone, "all"), 0.15, 0.1):
        raise ZeroDivisionError
    assert [n for n, _ in backbone.named_parameters()] == names


def test_the_gradient_of_a_gate_of_weights():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    x, goal = torch.randn(5, 4), torch.randn(5, 3)
    start = [p.detach().clone() for p in (layer.weight, layer.bias)]
    for value in (0.15, 0.05):
        with gated_weights({"layer": [(layer, "weight"), (layer, "bias")]}, value, 0.1) as gates:
            parameters = [layer.parametrizations[name].original for name in ("weight", "bias")]
            for parameter in parameters:
                parameter.data.normal_()
                parameter.grad = None
            ((layer(x) - goal) ** 2).sum().backward()
            used = [
                (p if value >= 0.1 else s).detach().clone().requires_grad_()
                for p, s in zip(parameters, start, strict=True)
            ]
            ((nn.functional.linear(x, *used) - goal) ** 2).sum().backward()
            expected = sum((u.grad * (p - s)).sum() for u, p, s in zip(used, parameters, start, strict=True))
            torch.testing.assert_close(gates["layer"].value.grad, expected.detach())
            for parameter, plain in zip(parameters, used, strict=True):
                assert torch.equal(parameter.grad, plain.grad if value >= 0.1 else torch.zeros_like(plain))
            for parameter, before in zip(parameters, start, strict=True):
                parameter.data.copy_(before)


def test_layers_that_share_a_parameter_share_a_gate():
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        tied = LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=True, **size))
        tied.tie_weights()
    names = [
        f"model.layers.0.{n}"
        for n in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ]
    assert sorted(weight_groups(tied, "linear")) == sorted(names), "a tied output layer is an embedding too"
    every = weight_groups(tied, "all")
    assert sorted(every) == sorted([*names, "model.embed_tokens"])
    assert [type(module).__name__ for module, _ in every["model.embed_tokens"]] == ["Embedding", "Linear"]


def test_every_convolution_of_a_resnet_has_a_gate():
    with torch.device("meta"):
        model = ResNetModel(ResNetConfig())  # ResNet-50
    groups = weight_groups(model, "linear")
    assert len(groups) == 1 + 3 * (3 + 4 + 6 + 3) + 4  # the first, three in a block, a shortcut in a stage
    gated = sum(getattr(module, name).numel() for group in groups.values() for module, name in group)
    norms = sum(p.numel() for n, p in model.named_parameters() if "normalization" in n)
    assert gated + norms == sum(p.numel() for p in model.parameters())
