"""Tiny models of real classes, fully fine-tuned: checkpoints on disk, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**SMALL, **TOKENS, "num_key_value_heads": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {**SMALL, "vocab_size": 40, "num_labels": 3}),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, **TOKENS}),
    "llama": ("LlamaForCausalLM", {**DECODER, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2ForCausalLM", {**DECODER, "tie_word_embeddings": False}),
    "roberta": ("RobertaForTokenClassification", {**SMALL, "vocab_size": 40, "pad_token_id": 1}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 16, "d_ff": 24, "num_layers": 1, "d_kv": 8, "vocab_size": 40}),
    "tied llama": ("LlamaForCausalLM", {**DECODER, "tie_word_embeddings": True}),
    "vit": ("ViTForImageClassification", {**SMALL, "image_size": 8, "patch_size": 4}),
}
NOT_HELD = {"vit": ["*cls_token", "*position_embeddings"], "convnext": ["*layer_scale_parameter", "*.layernorm.*"]}
"""Parameters that no adapter holds, which are left as they are."""


def model_of(kind: str) -> Any:
    name, settings = KINDS[kind]
    of = getattr(transformers, name)
    settings = {"num_heads": 2, **settings} if kind == "t5" else settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return of(of.config_class(**settings)).eval()


def is_held(name: str, kind: str) -> bool:
    from fnmatch import fnmatchcase

    return not any(fnmatchcase(name, pattern) for pattern in NOT_HELD.get(kind, ()))


def tune_(model: nn.Module, seed: int = 1, scale: float = 0.03, kind: str = "") -> nn.Module:
    """Move every parameter, more along some directions than along others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_held(name, kind):
                noise = torch.randn(parameter.shape, generator=generator)
                decay = torch.exp2(-torch.arange(len(parameter), dtype=torch.float32) / 3) if parameter.ndim else 1.0
                shape = (-1, *(1,) * (parameter.ndim - 1))
                parameter.add_(scale * noise * (decay.reshape(shape) + 0.01))
    return model


def both(folder: Path, kind: str, **options: Any) -> tuple[Path, Path]:
    """Write a base and the model tuned from it; return the tuned one's folder first."""
    model = model_of(kind)
    model.save_pretrained(folder / "base", **options)
    tune_(model, kind=kind).save_pretrained(folder / "tuned", **options)
    return folder / "tuned", folder / "base"


def load(folder: Path, kind: str) -> Any:
    return getattr(transformers, KINDS[kind][0]).from_pretrained(folder, dtype=torch.float64).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    config: Any = model.config
    if config.model_type in ("vit", "convnext"):
        size = 8 if config.model_type == "vit" else 32
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return model(pixel_values=pixels).logits
    ids = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 3, 11, 2]])
    more = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    return model(input_ids=ids, **more).logits


def best(change: torch.Tensor, rank: int) -> torch.Tensor:
    """The best approximation of a rank, by LAPACK."""
    u, s, vh = torch.linalg.svd(change.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]
