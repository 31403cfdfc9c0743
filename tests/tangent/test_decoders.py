"""Decoders of transformers' own classes: the expansion against differences, mapped, cached, in half precision."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from decoders import DECODERS, ROUTED, Widened, batch, decoder, dense, low_rank, slope
from tangora.adapters.adapter import Adapter
from tangora.adapters.metadata import Metadata
from tangora.tangent import Direction, TangentModel, direction_of
from tangora.tangent._dual import expand, expand_mapped
from tangora.tangent.direction import stacked_directions
from tangora.updates.task_vector import Dense

SLOPE = 1e-6  # against differences, see `slope`; a missing term is a hundredth of the slope at least
ROUNDING = 1e-11  # two ways to one number in float64: a thousand roundings of 1e-16, times a condition of a hundred
BF16, FP16 = torch.bfloat16, torch.float16

every = pytest.mark.parametrize("kind", DECODERS)


@pytest.fixture(autouse=True)
def _without_gradient():
    with torch.no_grad():
        yield


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Those of tokens that are no padding."""
    return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def expanded(model: nn.Module, direction: Direction, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    def call() -> Tensor:
        with direction.installed(model):
            return logits(model, inputs)

    return expand(call)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@every
def test_a_direction_of_low_rank_equals_differences(kind):
    model, inputs, updates = decoder(kind), batch(), low_rank(decoder(kind))
    with Widened():
        value, tangent = expanded(model, direction_of(Adapter(updates), model), inputs)
        assert torch.equal(value, logits(model, inputs))
        expected = slope(lambda: logits(model, inputs), model, dense(model, updates))
    assert error(tangent, expected) < SLOPE
    assert float(tangent.norm() / value.norm()) > 0.05


@every
def test_a_direction_in_every_weight_equals_differences(kind):
    """Norms, biases, routers and experts too, and embeddings that are tied to the head."""
    model, inputs = decoder(kind), batch()
    move = whole(model)
    adapter = Adapter({n: Dense(t) for n, t in move.items()}, Metadata(kind="full", linearize="model"))
    with Widened():
        found = TangentModel(model, adapter)(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]
        value = logits(model, inputs)
        expected = slope(lambda: logits(model, inputs), model, move)
    assert error(found - value, expected) < SLOPE
    assert float(expected.norm() / value.norm()) > 0.05


def whole(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.02 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


@every
def test_directions_that_are_mapped_equal_one_by_one(kind):
    model, inputs, directions = decoder(kind), batch(), []
    for seed in range(2):
        layers = direction_of(Adapter(low_rank(model, seed)), model).low_rank
        others = {n: t for n, t in whole(model, seed).items() if n.removesuffix(".weight") not in layers}
        directions.append(Direction(layers, others))

    def one(tensors: dict) -> tuple[Tensor, Tensor]:
        def call() -> Tensor:
            with Direction(**tensors).installed(model):
                return model(**inputs, use_cache=False).logits

        return expand_mapped(call)

    with Widened():
        value, tangents = torch.vmap(one, out_dims=(None, 0))(stacked_directions(directions).tensors())
        real = inputs["attention_mask"].bool()
        for direction, tangent in zip(directions, tangents, strict=True):
            alone = expanded(model, direction, inputs)
            assert torch.equal(value[real], alone[0])
            assert error(tangent[real], alone[1]) < ROUNDING


@every
def test_attention_in_one_kernel_equals_eager(kind):
    """Gemma 2 caps its scores, which only eager attention does."""
    model, inputs = copy.deepcopy(decoder(kind)), batch()
    direction = direction_of(Adapter(low_rank(model)), model)
    found = []
    for attention in ("sdpa", "eager") if kind != "gemma2" else ("eager",):
        model.set_attn_implementation(attention)
        with Widened():
            found.append(expanded(model, direction, inputs))
    for one, other in zip(found[0], found[-1], strict=True):
        assert error(one, other) < ROUNDING


@pytest.mark.parametrize("kind", ROUTED)
def test_every_implementation_of_experts_has_a_derivative(kind, monkeypatch):
    model, inputs = copy.deepcopy(decoder(kind)), batch()
    adapter = Adapter({n: Dense(t) for n, t in whole(model).items()}, Metadata(kind="full", linearize="model"))
    direction = direction_of(adapter, model)
    with Widened():
        value, tangent = expanded(model, direction, inputs)
        monkeypatch.setattr("transformers.integrations.moe._can_use_grouped_mm", lambda *_: False)
        for experts in ("eager", "grouped_mm"):
            model.set_experts_implementation(experts)
            found = expanded(model, direction, inputs)
            assert error(found[0], value) < ROUNDING
            assert error(found[1], tangent) < ROUNDING
    monkeypatch.undo()
    found = expanded(model.float(), direction, inputs)  # by the kernel
    assert error(found[0], value) < 1e-4  # a thousand roundings of 1e-7
    assert error(found[1], tangent) < 1e-4


@every
def test_half_precision_follows_double(kind):
    inputs, updates, model = batch(), low_rank(decoder(kind)), copy.deepcopy(decoder(kind))
    with Widened():
        expected = expanded(decoder(kind), direction_of(Adapter(updates), decoder(kind)), inputs)
    for weights, computed in ((torch.float32, BF16), (torch.float32, FP16), (FP16, None), (BF16, None)):
        model.to(weights)
        with torch.autocast("cpu", computed) if computed else nullcontext():
            found = expanded(model, direction_of(Adapter(updates), model), inputs)
        coarse = torch.finfo(computed or weights).eps
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == (computed or weights)
            assert error(one, other) < 32 * coarse  # of a hundred roundings in a row, most cancel
