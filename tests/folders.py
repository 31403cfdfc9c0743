"""Checkpoints made on the spot: a little Llama's tensors, any dtype, any number of shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPES = {
    "model.embed_tokens.weight": (40, 12),
    "model.layers.0.self_attn.q_proj.weight": (12, 12),
    "model.layers.0.mlp.up_proj.weight": (30, 12),
    "model.layers.0.mlp.down_proj.weight": (12, 30),
    "model.layers.0.input_layernorm.weight": (12,),
    "model.scale": (),
    "lm_head.weight": (40, 12),
}
CONFIG = {"model_type": "llama", "num_attention_heads": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}


def tensors(
    seed: int = 0, dtype: torch.dtype = torch.bfloat16, shapes: Mapping[str, tuple] = SHAPES
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def tuned(base: Mapping[str, Tensor], seed: int, scale: float = 0.05) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: (v.float() + scale * torch.randn(v.shape, generator=generator)).to(v.dtype) for k, v in base.items()}


def save(folder: Path, weights: Mapping[str, Tensor], shards: int = 1, config: Mapping[str, Any] = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    table = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key].contiguous() for key in sorted(weights)[i::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        table |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def family(
    root: Path, count: int = 3, **options: Any
) -> tuple[Path, list[Path], dict[str, Tensor], list[dict[str, Tensor]]]:
    """A base and models tuned from it: folders and weights."""
    base = tensors(**options)
    models = [tuned(base, seed) for seed in range(1, count + 1)]
    folders = [save(root / f"m{i}", weights, shards=i + 1) for i, weights in enumerate(models)]
    return save(root / "base", base), folders, base, models
