"""Tiny random decoders of transformers' own classes, and their derivative by differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tangora.updates.task_vector import LowRank

VOCABULARY, LENGTH = 40, 8
_SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN = {
    **_SPECIAL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_MIXED = {**_GROUPED, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "head_dim": 8}
_ROUTED = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}
_GRANITE = {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0, "attention_multiplier": 0.3}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2", {**_MIXED, "query_pre_attn_scalar": 8}),  # caps attention's scores and the logits
    "gemma3": ("Gemma3", {**_MIXED, "query_pre_attn_scalar": 8}),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 4, "head_dim": 8}),
    "phi3": ("Phi3", _GROUPED),
    "gpt2": ("GPT2", {**_SPECIAL, **_GPT2}),
    "qwen2_moe": ("Qwen2Moe", {**_ROUTED, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3Moe", {**_ROUTED, "head_dim": 8}),
    "mixtral": ("Mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "opt": ("OPT", {**_SPECIAL, **_OPT, "max_position_embeddings": 64}),
    "gpt_neox": ("GPTNeoX", _PLAIN),
    "falcon": ("Falcon", {**_PLAIN, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "smollm3": ("SmolLM3", _GROUPED),
    "olmo2": ("Olmo2", _GROUPED),
    "granite": ("Granite", {**_GROUPED, **_GRANITE}),
    "cohere": ("Cohere", _GROUPED),
}
ROUTED = ("qwen2_moe", "qwen3_moe", "mixtral")


@cache
def decoder(kind: str) -> nn.Module:
    """Return a decoder with random weights, biases and norms, in float64, frozen, made once: leave it as it is.

    Experts are computed by batched products: the kernel of the default is not for float64.
    """
    name, settings = DECODERS[kind]
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config"))(**settings)
    model = getattr(transformers, f"{name}{'LMHeadModel' if kind == 'gpt2' else 'ForCausalLM'}")(config)
    if kind in ROUTED:
        model.set_experts_implementation("batched_mm")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            centre = p.mean().round() if p.ndim == 1 else 0  # of norms, 0 or 1
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=generator))
    return model.double().eval().requires_grad_(False)


def batch() -> dict[str, Tensor]:
    """Return two rows of tokens with mask and positions: one is padded on the left, one on the right."""
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, -2:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def sites(model: nn.Module) -> list[str]:
    """Return the names of all linear layers but the head."""
    kinds = nn.Linear | transformers.pytorch_utils.Conv1D
    head = model.get_output_embeddings()
    return [name for name, m in model.named_modules() if isinstance(m, kinds) and m is not head]


def low_rank(model: nn.Module, seed: int = 0) -> dict[str, LowRank]:
    """Return random updates of rank 2 of all linear layers but the head."""
    generator, updates = torch.Generator().manual_seed(seed), {}
    for site in sites(model):
        weight = model.get_submodule(site).weight
        out, into = weight.shape if isinstance(model.get_submodule(site), nn.Linear) else weight.shape[::-1]
        b, a = (torch.randn(shape, generator=generator) for shape in ((out, 2), (2, into)))
        updates[site] = LowRank(0.1 * b, 0.3 * a)
    return updates


class Widened(TorchFunctionMode):
    """Computes in float64 what a model computes in float32 whatever its weights are: norms, softmax, rotations.

    Differences of float32 numbers would be too coarse.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        if func is Tensor.to:
            args = [torch.float64 if a is torch.float32 else a for a in args]
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


@contextmanager
def moved(model: nn.Module, move: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """Add ``step`` times ``move`` to the parameters; afterwards they have their bits again."""
    before = {name: model.get_parameter(name).detach().clone() for name in move}
    try:
        with torch.no_grad():
            for name, delta in move.items():
                model.get_parameter(name).add_(step * delta.double())
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value)


def dense(model: nn.Module, updates: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Return updates of layers as changes of their weights."""
    found = {}
    for site, update in updates.items():
        delta = update.b.double() @ update.a.double()
        found[f"{site}.weight"] = delta if isinstance(model.get_submodule(site), nn.Linear) else delta.T
    return found


def slope(function: Callable[[], Tensor], model: nn.Module, move: Mapping[str, Tensor], step: float = 1e-5) -> Tensor:
    """Return the derivative of ``function`` along ``move`` by a central difference.

    Relative error: truncation is step² = 1e-10 times the ratio of third to first derivative, and rounding eps / step =
    2e-11 times the ratio of value to derivative and the condition of ``function``; for the decoders here, each is under
    a thousand. A larger step would cross kinks: ReLU, and the choice of experts.
    """
    with moved(model, move, step):
        ahead = function()
    with moved(model, move, -step):
        return (ahead - function()) / (2 * step)
