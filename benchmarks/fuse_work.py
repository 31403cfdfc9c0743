"""Checkpoints for `fuse.py`: a Llama's shape, a base and models made by adding noise; in a process of its own.

python benchmarks/fuse_work.py FOLDER --layers 24
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, VOCABULARY, MODELS, NOISE = 1024, 4096, 32000, 4, 0.002


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        place = f"model.layers.{layer}"
        for name in "qkvo":
            yield f"{place}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        for name, shape in (
            ("gate", (INTERMEDIATE, HIDDEN)),
            ("up", (INTERMEDIATE, HIDDEN)),
            ("down", (HIDDEN, INTERMEDIATE)),
        ):
            yield f"{place}.mlp.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{place}.{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def config(layers: int) -> dict[str, object]:
    heads = HIDDEN // 64
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCABULARY,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    base = {
        name: (torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)).bfloat16()
        for name, shape in shapes(options.layers)
    }
    for model in ["base", *(f"ft{i}" for i in range(MODELS))]:
        folder = options.folder / model
        folder.mkdir(parents=True)
        made = base
        if model != "base":
            made = {n: (w + NOISE * torch.randn(w.shape, generator=generator)).bfloat16() for n, w in base.items()}
        save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config(options.layers)))
    print(sum(weight.numel() for weight in base.values()))


if __name__ == "__main__":
    main()
