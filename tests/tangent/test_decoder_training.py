"""Decoders of transformers' own classes in training: LoRA, L-LoRA and tangent, gradients, and what autograd keeps."""

from __future__ import annotations

import copy
from functools import cache

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoders import DECODERS, Widened, batch, decoder, sites
from graphs import GraphsOfTangents, kept_tangents
from tangora.tangent import TangentModel, expand_lora
from tangora.tangent._dual import dual_numbers
from tangora.tangent.linearization import linearize

MODES = {"lora": lambda wrapped: wrapped, "l-lora": linearize, "tangent": lambda w: TangentModel(expand_lora(w))}
# Two ways to one number in float64: a thousand roundings of 1e-16, times a condition of a hundred.
ROUNDING = 1e-11

every = pytest.mark.parametrize("kind", DECODERS)


@cache
def wrapped(kind: str) -> peft.PeftModel:
    """A decoder with adapters in all its linear layers, B = 0, made once: leave it as it is."""
    model = copy.deepcopy(decoder(kind))
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=sites(model), fan_in_fan_out=kind == "gpt2")
    found = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_A" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return found


def adapted(kind: str, mode: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model of a mode, and the adapters' parameters."""
    model = copy.deepcopy(wrapped(kind))
    return MODES[mode](model), {n: p for n, p in model.named_parameters() if "lora_" in n}


def loss(model: nn.Module) -> Tensor:
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    logits = model(**inputs, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def step(model: nn.Module, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """One step of gradient descent; the gradients."""
    loss(model).backward()
    gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    with torch.no_grad():
        for name, gradient in gradients.items():
            parameters[name].sub_(gradient)
            parameters[name].grad = None
    return gradients


@every
def test_a_step_changes_the_adapter_alone_and_starts_in_one_direction(kind):
    """At B = 0 the three modes are one function to first order in B."""
    first: dict[str, dict[str, Tensor]] = {}
    base = decoder(kind).state_dict()
    for mode in MODES:
        model, parameters = adapted(kind, mode)
        before = {n: p.detach().clone() for n, p in parameters.items()}
        with Widened():
            first[mode] = step(model, parameters)
            step(model, parameters)
        moved = {n for n, p in parameters.items() if not torch.equal(p, before[n])}
        assert moved == {n for n in parameters if "lora_B" in n or mode == "lora"}
        for name, value in model.state_dict().items():
            *_, own = name.rpartition("base_model.model.")
            assert "lora_" in own or torch.equal(value, base[own.replace(".base_layer", "")])
    for name in (n for n in first["lora"] if "lora_B" in n):
        for mode in ("l-lora", "tangent"):
            difference = first[mode][name] - first["lora"][name]
            assert float(difference.norm() / first["lora"][name].norm()) < ROUNDING


@every
def test_tangents_are_neither_kept_nor_recorded(kind):
    """Autograd would keep what a product saves with its tangents, and how these came about: twice a step's memory."""
    model, parameters = adapted(kind, "tangent")
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    recorded = GraphsOfTangents()
    with dual_numbers(), recorded:
        logits = model.model(**batch(), use_cache=False).logits
        kept = kept_tangents(logits)
    assert logits.requires_grad
    if kind == "mixtral":  # its router divides the weights of a row's experts in place: two numbers of a row
        kept = [name for name in kept if "DivBackward0" not in name]
        recorded.found -= {"div_", "reshape", "unsqueeze"}
    assert not kept
    assert not recorded.found


@every
def test_the_gradient_is_the_transpose_of_the_tangent(kind):
    """The logits are linear in B: a sum of them moves by the gradient, exactly."""
    weights = torch.randn(2, 8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    real = batch()["attention_mask"][..., None]
    model, parameters = adapted(kind, "tangent")
    trained = {n: p for n, p in parameters.items() if p.requires_grad}

    def total() -> Tensor:
        return (model(**batch(), use_cache=False).logits * weights * real).sum()

    with Widened():
        before = total()
        before.backward()
        generator, product = torch.Generator().manual_seed(4), torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for parameter in trained.values():
                move = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                product += (parameter.grad * move).sum()
                parameter.add_(move)
            found = total() - before
    assert float((found - product).abs() / product.abs()) < ROUNDING


@every
def test_l_lora_merges_into_what_it_computed(kind):
    model, parameters = adapted(kind, "l-lora")
    with Widened():
        step(model, parameters)
        with torch.no_grad():
            expected = model(**batch(), use_cache=False).logits
            merged = model.merge_and_unload()
            found = merged(**batch(), use_cache=False).logits
            plain = decoder(kind)(**batch(), use_cache=False).logits
    real = batch()["attention_mask"].bool()
    assert type(merged) is type(decoder(kind))
    # the update is stored in float32: 6e-8 of it, through the network a hundred times that
    assert float((found - expected)[real].norm() / (expected - plain)[real].norm()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "qwen2_moe"])
def test_a_step_in_mixed_precision_follows_double(kind, dtype):
    model, parameters = adapted(kind, "tangent")
    with Widened():
        expected = step(model, parameters)
    model, parameters = adapted(kind, "tangent")
    model.float()
    with torch.autocast("cpu", dtype):
        found = step(model, parameters)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert float((gradient - expected[name]).norm() / expected[name].norm()) < 32 * torch.finfo(dtype).eps
