"""Little models on disk, low-rank updates, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPES = {
    "model.embed_tokens.weight": (40, 20),
    "model.norm.weight": (20,),
    "lm_head.weight": (40, 20),
    **{
        f"model.layers.{i}.{name}.weight": shape
        for i in range(2)
        for name, shape in {
            **{f"self_attn.{k}_proj": (20, 20) for k in "qkvo"},
            "mlp.gate_proj": (30, 20),
            "mlp.up_proj": (30, 20),
            "mlp.down_proj": (20, 30),
            "input_layernorm": (20,),
            "post_attention_layernorm": (20,),
        }.items()
    },
}  # every size divides by 20, so that a density of 0.2, 0.25 or 0.5 is a whole number of entries
Weights = Mapping[str, Tensor]


def weights(seed: int = 0, scale: float = 1.0, base: Weights | None = None) -> dict[str, Tensor]:
    """Random tensors of a little Llama, or the base plus such."""
    g = torch.Generator().manual_seed(seed)
    drawn = {name: scale * torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    return drawn if base is None else {name: base[name] + change for name, change in drawn.items()}


def low_rank(seed: int, rank: int, tasks: int, out: int = 24, inside: int = 20) -> Tensor:
    """Updates of that rank, stacked."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, out, rank, generator=g) @ torch.randn(tasks, rank, inside, generator=g)


def write(folder: Path, tensors: Weights, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint that transformers, mergekit and Tangora read."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=20,
        intermediate_size=30,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )
    config.save_pretrained(folder)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def distance(found: Weights, expected: Weights, base: Weights) -> float:
    """How far two models are apart, as a fraction of how far the second is from the base; in float64."""
    pairs = [(found[n].double(), expected[n].double(), base[n].double()) for n in expected]
    apart = sum(float((f - e).square().sum()) for f, e, _ in pairs)
    return (apart / sum(float((e - b).square().sum()) for _, e, b in pairs)) ** 0.5


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
