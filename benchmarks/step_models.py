"""What `train_step.py` trains: two architectures with random weights, and four ways to adapt them.

Every contender starts from the same numbers: the same base weights, A₀ and batch, all from one seed. So they can be
checked against each other before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CONTENDERS", "SHAPES", "Shape", "build", "make_batch", "put_b"]

RANK, ALPHA = 16, 32  # the paper's
CLASSES = 10
CLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "layers": 12, "heads": 12, "image_size": 224}
CLIP_TINY = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "image_size": 32}
T5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
T5_TINY = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 100}


@dataclass(frozen=True)
class Shape:
    """One training set-up: architecture, sizes, and the size of a batch.

    Args:
        title: what the table says.
        family: ``clip`` or ``t5``.
        sizes: arguments of the architecture's configuration.
        batch: rows in a batch.
        lengths: tokens in and tokens out (t5).
        dropout: on the input of the adapters. peft skips it at 0.
    """

    title: str
    family: str
    sizes: dict[str, int]
    batch: int
    lengths: tuple[int, int] = (0, 0)
    dropout: float = 0.0


_CLIP, _T5 = "CLIP ViT-B/16, batch 8", "Flan-T5-base, batch 4, 64 tokens in, 16 out"
SHAPES = {
    "clip-vit-b16": Shape(_CLIP, "clip", CLIP_BASE, 8),
    "flan-t5-base": Shape(_T5, "t5", T5_BASE, 4, (64, 16)),
    "clip-vit-b16-dropout": Shape(f"{_CLIP}, adapter dropout 0.1", "clip", CLIP_BASE, 8, dropout=0.1),
    "flan-t5-base-dropout": Shape(f"{_T5}, adapter dropout 0.1", "t5", T5_BASE, 4, (64, 16), dropout=0.1),
    "tiny-clip": Shape("a tiny CLIP", "clip", CLIP_TINY, 2),
    "tiny-t5": Shape("a tiny T5", "t5", T5_TINY, 2, (5, 3)),
}


def build(shape: Shape, contender: str, seed: int, device: str) -> nn.Module:
    """The model of a shape, adapted by a contender, in training mode; ``model(**batch)``: loss and logits."""
    import peft
    import torch

    torch.manual_seed(seed)
    base = (_clip if shape.family == "clip" else _t5)(shape.sizes)
    targets = ["q_proj", "v_proj"] if shape.family == "clip" else ["q", "v"]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=shape.dropout, target_modules=targets)
    adapted = CONTENDERS[contender](peft.get_peft_model(base, config))
    return _with_loss(shape, adapted).to(device).train()


def make_batch(shape: Shape, seed: int, device: str) -> dict[str, Tensor]:
    """One batch of noise: pixels and labels, or token ids and target ids."""
    import torch

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
        batch["labels"] = torch.randint(1, vocabulary, out, generator=draw)
    return {name: value.to(device) for name, value in batch.items()}


def put_b(model: nn.Module, seed: int) -> None:
    """Give every B the same noise in every contender, as if it had trained."""
    import torch

    draw = torch.Generator().manual_seed(seed + 2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=draw))


def _clip(sizes: dict[str, int]) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = dict(sizes)
    layers, heads = sizes.pop("layers"), sizes.pop("heads")
    config = CLIPVisionConfig(
        num_hidden_layers=layers, num_attention_heads=heads, projection_dim=512, patch_size=16, **sizes
    )
    return CLIPVisionModelWithProjection(config)


def _t5(sizes: dict[str, int]) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, use_cache=False, **special, **sizes)
    return T5ForConditionalGeneration(config)


def _with_loss(shape: Shape, adapted: nn.Module) -> nn.Module:
    """T5 brings its loss; CLIP's image tower gets a frozen zero-shot head of unit vectors."""
    if shape.family == "t5":
        return adapted
    import torch
    import torch.nn.functional as F

    class ZeroShot(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = adapted
            self.register_buffer("head", F.normalize(torch.randn(CLASSES, 512), dim=-1))

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            embeds = F.normalize(self.tower(pixel_values=pixel_values).image_embeds, dim=-1)
            logits = 100 * embeds @ self.head.T
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    return ZeroShot()


def _lora(model: nn.Module) -> nn.Module:
    return model


def _lora_frozen_a(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return model


def _l_lora(model: nn.Module) -> nn.Module:
    from tangora.linearize import linearize

    return linearize(model)


def _jvp_wrapper(model: nn.Module) -> nn.Module:
    """fusion-bench's module around every LoRA layer.

    Its own loop over the layers sits in a file that imports a class which transformers 5 no longer has.
    """
    from fusion_bench.models.linearized.linearized_model_utils import LinearizedModelWraper
    from peft.tuners.lora import LoraLayer

    for name in [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LinearizedModelWraper(model.get_submodule(name)))
    return model


CONTENDERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "lora": _lora,
    "lora_frozen_a": _lora_frozen_a,
    "l_lora": _l_lora,
    "jvp_wrapper": _jvp_wrapper,
}
