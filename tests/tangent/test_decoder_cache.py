"""An expanded decoder that continues from cached keys and values computes what a pass over all tokens computes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache, T5ForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from decoders import DECODERS, LENGTH, Widened, batch, decoder, low_rank
from tangora.adapters.adapter import Adapter
from tangora.errors import ModelError
from tangora.tangent import TangentModel
from tangora.tangent._dual import dual_numbers, parts
from tangora.tasks import caches
from tangora.tasks.caches import cache_of, cached_length, keeps_states
from tangora.tasks.language.greedy import Generation
from tangora.updates.task_vector import LowRank

# Two ways to one number in float64: a thousand roundings of 1e-16, times a condition of a hundred. A tangent that is
# lost changes the logits by a tenth.
ROUNDING = 1e-11


@pytest.fixture(autouse=True)
def _without_gradient():
    with torch.no_grad():
        yield


def expanded(kind: str) -> TangentModel:
    return TangentModel(decoder(kind), Adapter(low_rank(decoder(kind))))


def part(inputs: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Tokens ``start`` to ``end``, and the mask of all before, too."""
    tokens = {name: inputs[name][:, start:end] for name in ("input_ids", "position_ids")}
    return {**tokens, "attention_mask": inputs["attention_mask"][:, :end]}


def in_steps(model: TangentModel, inputs: dict[str, Tensor], cache: Cache | None = None) -> Tensor:
    """Logits of a first call with five tokens, and of one call per further token."""
    found = []
    with model.open() as call:
        for start, end in [(0, 5), *((i, i + 1) for i in range(5, LENGTH))]:
            output = call(**part(inputs, start, end), past_key_values=cache, use_cache=True)
            cache = cache_of(output)
            assert cached_length(cache) == end
            found.append(output.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("kind", DECODERS)
def test_continuing_equals_a_pass_over_all_tokens(kind):
    model, inputs = expanded(kind), batch()
    with Widened():
        expected, found = model(**inputs, use_cache=False).logits, in_steps(model, inputs)
        plain = model.model(**inputs, use_cache=False).logits
    real = inputs["attention_mask"].bool()
    assert float((found - expected)[real].norm() / expected[real].norm()) < ROUNDING
    assert float((plain - expected)[real].norm() / expected[real].norm()) > 0.05


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_a_cache_of_a_fixed_size_keeps_tangents_too(kind):
    model, inputs = expanded(kind), batch()
    with Widened():
        found = in_steps(model, inputs, StaticCache(config=model.model.config, max_cache_len=LENGTH))
        expected = model(**inputs, use_cache=False).logits
    real = inputs["attention_mask"].bool()
    assert float((found - expected)[real].norm() / expected[real].norm()) < ROUNDING


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
def test_greedy_answers_are_those_of_passes_over_all_tokens(kind, cached, monkeypatch):
    model, most, prompts = expanded(kind), 5, batch()["input_ids"][:, :4]
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    if not cached:
        monkeypatch.setattr(caches, "LAYERS", set())
    calls = []
    hook = model.model.register_forward_pre_hook(
        lambda *args: calls.append(args[2]["input_ids"].shape[1]), with_kwargs=True
    )
    with hook, dual_numbers(), model._direction.installed(model.model):
        found = Generation(model.model, most, [], lambda _: False, lambda x: sum(parts(x))).answers(prompts, mask)
    assert calls == ([4, 1, 1, 1, 1] if cached else [4, 5, 6, 7, 8])
    assert found != Generation(model.model, most, [], lambda _: False).answers(prompts, mask)
    ids = prompts
    for _ in range(most):
        whole = torch.cat([mask, torch.ones(2, ids.shape[1] - 4, dtype=mask.dtype)], 1)
        positions = (whole.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=whole, position_ids=positions, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    assert found == ids[:, 4:].tolist()


def test_an_encoder_decoder_continues_too(tiny_t5):
    base = T5ForConditionalGeneration.from_pretrained(tiny_t5).double().eval()
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for site in ("SelfAttention.k", "SelfAttention.v"):
        shapes = (32, 2), (2, 32)
        updates[f"decoder.block.0.layer.0.{site}"] = LowRank(*(torch.randn(s, generator=generator) for s in shapes))
    model, ids = TangentModel(base, Adapter(updates)), torch.tensor([[5, 6, 7]])
    out = torch.tensor([[0, 4, 5, 6]])
    with Widened():
        expected = model(input_ids=ids, decoder_input_ids=out).logits
        with model.open() as call:
            first = call(input_ids=ids, decoder_input_ids=out[:, :3], use_cache=True)
            encoded, cache = first.encoder_last_hidden_state, cache_of(first)
            second = call(encoder_outputs=(encoded,), decoder_input_ids=out[:, 3:], past_key_values=cache)
    assert float((second.logits - expected[:, 3:]).norm() / expected.norm()) < ROUNDING
    assert float((base(input_ids=ids, decoder_input_ids=out).logits - expected).norm() / expected.norm()) > 0.01


def test_states_of_another_block_are_refused():
    model, inputs = expanded("llama"), batch()
    output = model(**part(inputs, 0, 5), use_cache=True)
    with pytest.raises(ModelError, match=r"no tangents, got 'DynamicCache' at past_key_values.*model\.open"):
        model(**part(inputs, 5, 6), past_key_values=output.past_key_values)
    model(**part(inputs, 0, 5), past_key_values=DynamicCache(config=model.model.config))
    with model.open() as call:
        pass
    with pytest.raises(ModelError, match="block has ended"):
        call(**inputs)


def test_a_cache_that_may_lose_tangents_is_not_given_back():
    class Rounded(DynamicLayer):
        """Like a quantized layer."""

    known = [DynamicLayer(), DynamicSlidingWindowLayer(4)]
    for layers, kept in ((known, True), ([*known, Rounded()], False), ([], False)):
        cache = SimpleNamespace(layers=layers)
        assert keeps_states(cache) is kept
        assert cache_of(SimpleNamespace(past_key_values=cache)) is (cache if kept else None)
    assert cache_of(SimpleNamespace(past_key_values=None)) is None
