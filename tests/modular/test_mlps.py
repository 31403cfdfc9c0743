"""The MLPs of transformers' classes are found by the names of a layer's children."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tangora.errors import ModelError
from tangora.modular.mlps import mlps_of

TINY = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
MODELS = {
    "AlbertModel": {**TINY, "embedding_size": 8, "vocab_size": 20},
    "BartForConditionalGeneration": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "vocab_size": 20,
    },
    "BertModel": {**TINY, "vocab_size": 20},
    "CLIPVisionModel": {**TINY, "image_size": 16, "patch_size": 8},
    "DistilBertModel": {"n_layers": 2, "dim": 16, "hidden_dim": 24, "n_heads": 2, "vocab_size": 20},
    "GPT2LMHeadModel": {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 20},
    "LlamaForCausalLM": {**TINY, "vocab_size": 20},
    "OPTForCausalLM": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_attention_heads": 2,
        "vocab_size": 20,
    },
    "T5ForConditionalGeneration": {
        "num_layers": 1,
        "d_model": 16,
        "d_ff": 24,
        "num_heads": 2,
        "vocab_size": 20,
        "feed_forward_proj": "gated-gelu",
    },
    "ViTModel": {**TINY, "image_size": 16, "patch_size": 8},
}
FOUND = {
    "AlbertModel": [("encoder.albert_layer_groups.0.albert_layers.0.ffn", 2, False)],
    "BartForConditionalGeneration": [("model.encoder.layers.0.fc1", 2, False), ("model.decoder.layers.0.fc1", 2, True)],
    "BertModel": [(f"encoder.layer.{i}.intermediate", 2, False) for i in range(2)],
    "CLIPVisionModel": [(f"encoder.layers.{i}.mlp", 2, False) for i in range(2)],
    "DistilBertModel": [(f"transformer.layer.{i}.ffn", 2, False) for i in range(2)],
    "GPT2LMHeadModel": [(f"transformer.h.{i}.mlp", 2, True) for i in range(2)],
    "LlamaForCausalLM": [(f"model.layers.{i}.mlp", 3, True) for i in range(2)],
    "OPTForCausalLM": [(f"model.decoder.layers.{i}.fc1", 2, True) for i in range(2)],
    "T5ForConditionalGeneration": [
        ("encoder.block.0.layer.1.DenseReluDense", 3, False),
        ("decoder.block.0.layer.2.DenseReluDense", 3, True),
    ],
    "ViTModel": [(f"layers.{i}.mlp", 2, False) for i in range(2)],
}


def made(name):
    kind = getattr(transformers, name)
    with torch.device("meta"):
        return kind(kind.config_class(**MODELS[name]))


@pytest.mark.parametrize("name", sorted(FOUND))
def test_the_blocks_of_a_class(name):
    blocks = mlps_of(made(name))
    assert [(b.name, len(b.layers), b.causal) for b in blocks] == FOUND[name]
    assert {b.width for b in blocks} == {16}


def test_a_pattern_names_the_children():
    backbone = made("BertModel")
    blocks = mlps_of(backbone, "output")
    assert [b.name for b in blocks][:2] == ["encoder.layer.0.output", "encoder.layer.0.attention.output"]
    one = mlps_of(backbone, "nothing|intermediate")
    assert [b.layers for b in one] == [(f"encoder.layer.{i}.intermediate.dense",) for i in range(2)]


@pytest.mark.parametrize(("pattern", "got"), [(None, "Sequential"), ("mlp+fc", "mlp+fc"), ("", "")])
def test_a_model_without_mlps_is_refused(pattern, got):
    layer = nn.ModuleDict({"up": nn.Linear(4, 8), "mlp": nn.ModuleList([nn.Linear(4, 8)])})
    with pytest.raises(ModelError, match=r"no MLP was found in the model, got .*blocks=mlp") as caught:
        mlps_of(nn.Sequential(layer), pattern)
    assert got in str(caught.value)
