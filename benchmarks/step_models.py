"""What `train_step.py` trains: four architectures with random weights, and the ways to adapt them.

Every contender starts from the same numbers: the same base weights, A₀ and batch, all from one seed. So they can be
checked against each other before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "COMPARISONS",
    "CONTENDERS",
    "EXPANSIONS",
    "SHAPES",
    "Comparison",
    "Shape",
    "build",
    "made_on",
    "make_batch",
    "put_b",
]

CLASSES = 10


def _heads(width: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


CLIP_BASE = {**_heads(768, 3072, 12, 12), "image_size": 224}
CLIP_TINY = {**_heads(32, 64, 2, 2), "image_size": 32}
MINILM = {**_heads(384, 1536, 6, 12), "vocab_size": 30522}
BERT_TINY = {**_heads(32, 64, 2, 2), "vocab_size": 100}
T5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
T5_TINY = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
LLAMA = {**_heads(256, 704, 4, 8), "num_key_value_heads": 4, "vocab_size": 8192}
LLAMA_TINY = {**_heads(32, 64, 2, 4), "num_key_value_heads": 2, "vocab_size": 100}
LLAMA_1B = {**_heads(2048, 8192, 16, 32), "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}
TARGETS = {
    "clip": ["q_proj", "v_proj"],
    "bert": ["query", "value"],
    "t5": ["q", "v"],
    "llama": ["q_proj", "v_proj"],
}


@dataclass(frozen=True)
class Shape:
    """One training set-up: architecture, sizes, and the size of a batch.

    Args:
        title: what the table says.
        family: ``clip``, ``bert``, ``t5`` or ``llama``.
        sizes: arguments of the architecture's configuration.
        batch: rows in a batch.
        lengths: tokens in and tokens out (bert, llama: none out).
        dropout: on the input of the adapters. peft skips it at 0.
        rank: of the adapters; alpha is twice as much. 16 is the paper's.
    """

    title: str
    family: str
    sizes: dict[str, int]
    batch: int
    lengths: tuple[int, int] = (0, 0)
    dropout: float = 0.0
    rank: int = 16


_CLIP, _T5 = "CLIP ViT-B/16, batch 8", "Flan-T5-base, batch 4, 64 tokens in, 16 out"
SHAPES = {
    "clip-vit-b16": Shape(_CLIP, "clip", CLIP_BASE, 8),
    "flan-t5-base": Shape(_T5, "t5", T5_BASE, 4, (64, 16)),
    "clip-vit-b16-dropout": Shape(f"{_CLIP}, adapter dropout 0.1", "clip", CLIP_BASE, 8, dropout=0.1),
    "flan-t5-base-dropout": Shape(f"{_T5}, adapter dropout 0.1", "t5", T5_BASE, 4, (64, 16), dropout=0.1),
    "minilm": Shape("MiniLM, batch 32, 35 tokens, r = 8", "bert", MINILM, 32, (35, 0), rank=8),
    "llama": Shape("Llama, 4 layers of width 256, batch 4, 128 tokens", "llama", LLAMA, 4, (128, 0)),
    "clip-vit-b16-64": Shape("CLIP ViT-B/16, batch 64", "clip", CLIP_BASE, 64),
    "flan-t5-base-32": Shape("Flan-T5-base, batch 32, 128 tokens in, 32 out", "t5", T5_BASE, 32, (128, 32)),
    "llama-1b": Shape("Llama of 1.2 B parameters, batch 4, 512 tokens", "llama", LLAMA_1B, 4, (512, 0)),
    "tiny-clip": Shape("a tiny CLIP", "clip", CLIP_TINY, 2),
    "tiny-bert": Shape("a tiny BERT", "bert", BERT_TINY, 2, (5, 0)),
    "tiny-t5": Shape("a tiny T5", "t5", T5_TINY, 2, (5, 3)),
    "tiny-llama": Shape("a tiny Llama", "llama", LLAMA_TINY, 2, (5, 0)),
}


@dataclass(frozen=True)
class Comparison:
    """Contenders that are measured in one run and stand in one table; the first is what the others are divided by."""

    contenders: tuple[str, ...]
    shapes: tuple[str, ...]


COMPARISONS = {
    "train_step": Comparison(
        ("lora", "lora_frozen_a", "l_lora", "jvp_wrapper"),
        ("clip-vit-b16", "flan-t5-base", "clip-vit-b16-dropout", "flan-t5-base-dropout"),
    ),
    "tangent_step": Comparison(("lora", "tangent", "tangent_jvp"), ("minilm", "clip-vit-b16", "flan-t5-base", "llama")),
}
EXPANSIONS = ("tangent", "tangent_jvp")
"""Contenders that are LoRA only where B = 0: elsewhere they compute the expansion of the whole network."""


def build(shape: Shape, contender: str, seed: int, device: str, dtype: str = "float32") -> nn.Module:
    """The model of a shape, adapted by a contender, in training mode; ``model(**batch)``: loss and logits.

    Args:
        shape: the architecture and its sizes.
        contender: how it is adapted.
        seed: of all weights.
        device: where it is made.
        dtype: of the base's weights; peft keeps the adapters of a base in half precision in float32.
    """
    import peft
    import torch
    from step_networks import NETWORKS, WithLoss

    torch.manual_seed(seed)
    kind = NETWORKS[shape.family]
    config = peft.LoraConfig(
        r=shape.rank, lora_alpha=2 * shape.rank, lora_dropout=shape.dropout, target_modules=TARGETS[shape.family]
    )
    with made_on(device, dtype):
        base = kind.base(shape)
    network = kind(peft.get_peft_model(base, config)).to(device)
    return WithLoss(CONTENDERS[contender](network)).train()


@contextmanager
def made_on(device: str, dtype: str) -> Iterator[None]:
    """New modules are made on the device, where a billion random numbers take no time, and in the dtype.

    Not cast afterwards: that would round the tables of positions, which transformers computes in float32.
    """
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def make_batch(shape: Shape, seed: int, device: str) -> dict[str, Tensor]:
    """One batch of noise: pixels or token ids, and labels or target ids."""
    import torch
    import torch.nn.functional as F

    draw = torch.Generator().manual_seed(seed + 1)
    if shape.family == "clip":
        side = shape.sizes["image_size"]
        pixels = torch.randn(shape.batch, 3, side, side, generator=draw)
        batch = {"pixel_values": pixels, "labels": torch.randint(CLASSES, (shape.batch,), generator=draw)}
    else:
        into, out = ((shape.batch, length) for length in shape.lengths)
        vocabulary = shape.sizes["vocab_size"]
        batch = {"input_ids": torch.randint(1, vocabulary, into, generator=draw)}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if shape.family == "bert":
            batch["labels"] = torch.randint(CLASSES, (shape.batch,), generator=draw)
        elif shape.family == "llama":
            batch["labels"] = F.pad(batch["input_ids"][:, 1:], (0, 1), value=-100)  # of the next token
        else:
            batch["labels"] = torch.randint(1, vocabulary, out, generator=draw)
            batch["decoder_input_ids"] = F.pad(batch["labels"][:, :-1], (1, 0))
    return {name: value.to(device) for name, value in batch.items()}


def put_b(model: nn.Module, seed: int) -> None:
    """Give every B the same noise in every contender, as if it had trained."""
    import torch

    draw = torch.Generator().manual_seed(seed + 2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=draw))


def _lora(network: Any) -> nn.Module:
    return network


def _lora_frozen_a(network: Any) -> nn.Module:
    for name, parameter in network.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return network


def _l_lora(network: Any) -> nn.Module:
    from tangora.tangent.linearization import linearize

    linearize(network.backbone)
    return network


def _jvp_wrapper(network: Any) -> nn.Module:
    """fusion-bench's module around every LoRA layer.

    Its own loop over the layers sits in a file that imports a class which transformers 5 no longer has.
    """
    from fusion_bench.models.linearized.linearized_model_utils import LinearizedModelWraper
    from peft.tuners.lora import LoraLayer

    model = network.backbone
    for name in [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LinearizedModelWraper(model.get_submodule(name)))
    return network


def _tangent(network: Any) -> nn.Module:
    from tangora.tangent import TangentModel, expand_lora

    expand_lora(network.backbone)
    return TangentModel(network)


def _tangent_jvp(network: Any) -> nn.Module:
    """Given A frozen, whose gradient is zero at B₀ = 0: without it the naive way would cost more."""
    from step_networks import NaiveTangent

    network.backbone.get_base_model().set_attn_implementation("eager")
    return NaiveTangent(_lora_frozen_a(network))


CONTENDERS: dict[str, Callable[[Any], nn.Module]] = {
    "lora": _lora,
    "lora_frozen_a": _lora_frozen_a,
    "l_lora": _l_lora,
    "jvp_wrapper": _jvp_wrapper,
    "tangent": _tangent,
    "tangent_jvp": _tangent_jvp,
}
