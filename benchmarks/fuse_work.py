"""Checkpoints for `fuse.py`: a Llama's shape, a base and models made by adding noise; in a process of its own.

python benchmarks/fuse_work.py FOLDER --layers 24
python benchmarks/fuse_work.py FOLDER --layers 4 --shape 7b --device cuda
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MODELS, NOISE = 4, 0.002


@dataclass(frozen=True)
class Widths:
    """Of a Llama with as many heads of keys and values as of queries."""

    hidden: int
    intermediate: int
    vocabulary: int
    head: int


WIDTHS = {
    "small": Widths(1024, 4096, 32000, 64),
    "7b": Widths(4096, 11008, 32000, 128),
    "tiny": Widths(64, 160, 100, 16),
}


def shapes(layers: int, widths: Widths = WIDTHS["small"]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate = widths.hidden, widths.intermediate
    yield "model.embed_tokens.weight", (widths.vocabulary, hidden)
    for layer in range(layers):
        place = f"model.layers.{layer}"
        for name in "qkvo":
            yield f"{place}.self_attn.{name}_proj.weight", (hidden, hidden)
        for name, shape in (
            ("gate", (intermediate, hidden)),
            ("up", (intermediate, hidden)),
            ("down", (hidden, intermediate)),
        ):
            yield f"{place}.mlp.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{place}.{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (widths.vocabulary, hidden)


def bytes_of(layers: int, widths: Widths = WIDTHS["small"]) -> int:
    """Of a checkpoint in bfloat16."""
    return 2 * sum(math.prod(shape) for _, shape in shapes(layers, widths))


def config(layers: int, widths: Widths = WIDTHS["small"]) -> dict[str, object]:
    heads = widths.hidden // widths.head
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": widths.vocabulary,
        "hidden_size": widths.hidden, "intermediate_size": widths.intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--shape", choices=WIDTHS, default="small")
    parser.add_argument("--device", default="cpu", help="where random numbers are drawn")
    options = parser.parse_args(arguments)
    import torch
    from safetensors.torch import save_file

    device, widths = options.device, WIDTHS[options.shape]
    generator = torch.Generator(device).manual_seed(0)

    def noise(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) * scale

    base = {
        name: (noise(shape, 0.02) if len(shape) > 1 else torch.ones(shape, device=device)).bfloat16()
        for name, shape in shapes(options.layers, widths)
    }
    for model in ["base", *(f"ft{i}" for i in range(MODELS))]:
        folder = options.folder / model
        folder.mkdir(parents=True)
        made = base
        if model != "base":
            made = {name: (weight + noise(tuple(weight.shape), NOISE)).bfloat16() for name, weight in base.items()}
        save_file({n: w.cpu() for n, w in made.items()}, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config(options.layers, widths)))
    print(sum(weight.numel() for weight in base.values()))


if __name__ == "__main__":
    main()
