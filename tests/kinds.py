"""Adapters of every kind of peft on tiny models of transformers, written by stock peft, and what stock peft answers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 3, 2, 1]])


PIXELS = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
TEXT, SEEN = {"vocab_size": 32}, {"image_size": 8, "patch_size": 4}
GROUPED = {**SIZES, **TEXT, "num_key_value_heads": 1}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
OPT = {"ffn_dim": 24, "max_position_embeddings": 16, "word_embed_proj_dim": 16}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}

MODELS: Mapping[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "bert": ("BertForMaskedLM", "Bert", {**SIZES, **TEXT}, ["query", "output.dense"]),
    "bloom": (
        "BloomForCausalLM",
        "Bloom",
        {"hidden_size": 16, "n_layer": 2, "n_head": 2, **TEXT},
        ["dense", "dense_h_to_4h"],
    ),
    "clip": ("CLIPVisionModel", "CLIPVision", {**SIZES, **SEEN}, ["q_proj", "fc2"]),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBert",
        {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, **TEXT},
        ["q_lin", "lin2"],
    ),
    "gemma": ("GemmaForCausalLM", "Gemma", {**GROUPED, "head_dim": 8}, ["q_proj", "down_proj"]),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, **TEXT},
        ["c_attn", "mlp.c_proj"],
    ),
    "llama": ("LlamaForCausalLM", "Llama", {**SIZES, **TEXT, "attention_bias": True}, ["q_proj", "down_proj"]),
    "mistral": ("MistralForCausalLM", "Mistral", GROUPED, ["o_proj", "down_proj"]),
    "opt": ("OPTForCausalLM", "OPT", {**SIZES, **TEXT, **OPT}, ["q_proj", "fc2"]),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2", GROUPED, ["q_proj", "down_proj"]),
    "resnet": ("ResNetForImageClassification", "ResNet", RESNET, ["convolution"]),
    "roberta": (
        "RobertaForSequenceClassification",
        "Roberta",
        {**SIZES, **TEXT, "max_position_embeddings": 16, "num_labels": 3},
        ["query", "output.dense"],
    ),
    "t5": ("T5ForConditionalGeneration", "T5", {**T5, **TEXT, "decoder_start_token_id": 0}, ["q", "wo"]),
    "vit": ("ViTForImageClassification", "ViT", {**SIZES, **SEEN, "num_labels": 3}, ["q_proj", "fc2"]),
}
"""name -> class, its configuration's class and arguments, and the ends of adapted layers: one square, one not."""

SETTINGS: Mapping[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "LOHA": {"r": 2},
    "LOKR": {"r": 2},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 2},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "r": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}


def settings_of(kind: str, model: str) -> dict[str, Any]:
    """The arguments of peft's configuration of a kind, on a model."""
    targets = MODELS[model][3]
    made: dict[str, Any] = {"target_modules": targets, **SETTINGS.get(kind, {})}
    if kind == "IA3":
        made["feedforward_modules"] = targets[1:]
    return made


@cache
def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, config, sizes, _ = MODELS[name]
    model = getattr(transformers, kind)(getattr(transformers, f"{config}Config")(**sizes)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def model_of(name: str) -> nn.Module:
    """A tiny model of random weights, none of them zero; the same in every call."""
    return copy.deepcopy(_model(name))


def write(folder: Path, kind: str, model: nn.Module, seed: int = 1, **settings: Any) -> Path:
    """An adapter of random numbers, saved by stock peft."""
    config = {str(key.value): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[kind](**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, config)
        draw = torch.Generator().manual_seed(seed)
        for parameter in wrapped.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
        wrapped.save_pretrained(folder)
    return folder


def through_peft(folder: Path, model: nn.Module) -> Any:
    """The model with an adapter, by stock peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder).eval()


def merged(folder: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a model after stock peft's own merge, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = through_peft(folder, model).merge_and_unload()
    return {name: parameter.detach().double() for name, parameter in whole.named_parameters(remove_duplicate=False)}


def logits(model: Any, name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """What a model answers to fixed inputs, computed in float64 if it can be."""
    inputs = {"pixel_values": PIXELS.to(dtype)} if name in ("clip", "resnet", "vit") else {"input_ids": IDS}
    inputs |= {"decoder_input_ids": IDS} if name == "t5" else {}
    with torch.no_grad():
        answer = model.to(dtype)(**inputs)
    return answer.logits if "logits" in answer else answer.last_hidden_state
