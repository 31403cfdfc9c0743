"""Chunked losses against whole ones, packed batches against padded ones: values and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
import transformers

import tangora
from tangora.errors import ModelError
from tangora.tasks.language import logits as language
from tangora.tasks.language.model import _refuse_mixing
from tangora.tasks.model import TaskModel

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
GATED = {**SHAPE, "intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "LlamaForCausalLM": ("LlamaConfig", GATED),
    "Qwen3ForCausalLM": ("Qwen3Config", {**GATED, "head_dim": 4}),
    "MistralForCausalLM": ("MistralConfig", {**GATED, "sliding_window": 5}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GATED, "head_dim": 4, "sliding_window": 5, "query_pre_attn_scalar": 4}),
    "Phi3ForCausalLM": ("Phi3Config", {**GATED, "pad_token_id": 0}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "GraniteForCausalLM": ("GraniteConfig", {**GATED, "logits_scaling": 3.0}),
}


@pytest.fixture(scope="module", params=CONFIGS)
def decoder(request):
    config, shape = CONFIGS[request.param]
    torch.manual_seed(0)
    special = {"vocab_size": 261, "eos_token_id": 1, "bos_token_id": None}
    made = getattr(transformers, request.param)(getattr(transformers, config)(**shape, **special))
    # Gemma 2 computes its softmax in float32, in which float64's mask of padding is an infinity
    return (made if request.param.startswith("Gemma2") else made.double()).eval()


@pytest.fixture(scope="module")
def rows(tiny_llama, sum_data):
    base = tangora.load_base(tiny_llama, family="causal-lm", max_length=64, max_new_tokens=12)
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    task = tangora.load_task("sums", base, files, messages="messages", turns="all")
    return [task.splits["train"].dataset()[i] for i in range(5)], TaskModel(base.backbone, task, base).collator


def losses_and_gradient(model, compute):
    model.zero_grad()
    losses = compute()
    (losses * torch.arange(1, len(losses) + 1)).sum().backward()
    return losses.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def whole(model, batch, labels):
    from tangora.tasks.readouts import token_losses

    return token_losses(language.target_logits(model, batch, labels), labels)


def assert_equal(one, other, terms):
    """Sums of ``terms`` products in another order differ by that many roundings of the largest entry at most."""
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=terms * torch.finfo(b.dtype).eps * max(1.0, float(b.abs().max())))


def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(decoder, rows):
    listed, collator = rows
    padded, packed = dict(collator(listed)), dict(type(collator)(packing=True).for_training()(listed))
    assert len(packed["input_ids"]) == 1
    labels, own = padded.pop("labels"), packed.pop("labels")
    expected = losses_and_gradient(decoder, lambda: whole(decoder, padded, labels))
    found = losses_and_gradient(decoder, lambda: whole(decoder, packed, own))
    assert_equal(found, expected, 1e4)
    assert float(expected[1].abs().max()) > 1e-3


@pytest.mark.parametrize("packing", [False, True])
def test_losses_in_chunks_are_those_of_whole_logits(packing, decoder, rows):
    listed, collator = rows
    batch = dict(type(collator)(packing=packing).for_training()(listed))
    labels, layers = batch.pop("labels"), language.layers_of(decoder)
    if type(decoder).__name__ == "GraniteForCausalLM":
        assert layers is None, "its class divides logits by a number"
        return
    expected = losses_and_gradient(decoder, lambda: whole(decoder, batch, labels))
    found = losses_and_gradient(decoder, lambda: language.target_losses(layers, batch, labels, chunk=3 * 261))
    assert_equal(found, expected, 1e4)


def test_no_more_than_a_chunk_of_logits_exists_at_once(decoder, rows):
    listed, collator = rows
    if (layers := language.layers_of(decoder)) is None:
        return
    seen = []
    handle = layers.head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[0]))
    batch = dict(collator(listed))
    losses = language.target_losses(layers, batch, batch.pop("labels"), chunk=3 * 261)
    handle.remove()
    assert losses.shape == (5,)
    assert max(seen) == 3
    assert len(seen) > 3


def test_a_model_that_mixes_packed_rows_is_refused():
    """BLOOM has no positions: its masks cannot tell rows apart."""
    config = transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    model = transformers.BloomForCausalLM(config).eval()
    with pytest.raises(ModelError, match="no positions"):
        _refuse_mixing(model, "here")


def test_training_with_packing_gives_the_same_adapter(tiny_llama, sum_data):
    """The losses agree to rounding, in float32; three small steps keep it so."""
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    config = tangora.FinetuneConfig(
        lora={"r": 2, "target_modules": ["q_proj"]}, training={"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    )
    updates = []
    for packing in (False, True):
        base = tangora.load_base(tiny_llama, family="causal-lm", max_new_tokens=4, packing=packing)
        task = tangora.load_task("sums", base, files, limit={"validation": 2})
        updates.append(tangora.finetune(base, task, config).updates)
    for site, update in updates[0].items():
        one, other = update.factors(), updates[1][site].factors()
        assert torch.allclose(one.b, other.b, atol=1e-5)
        assert float(one.b.abs().max()) > 1e-4
