"""Contrastive pretraining of the tiny CLIP, in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from tangora.quickstart.data import pretraining
from tangora.quickstart.fitting import Progress, fit, save_model
from tangora.quickstart.model import PIXEL_MEAN, PIXEL_STD, build, image_processor, tokenizer, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from jaxtyping import Float, Int, UInt8
    from torch import Tensor
    from transformers import CLIPModel, PreTrainedTokenizerFast

__all__ = ["PretrainingSettings", "Progress", "pretrain", "save"]


@dataclass(frozen=True)
class PretrainingSettings:
    """The encoder's architecture and training; with the data, they decide its weights."""

    width: int = 96
    layers: int = 4
    patch: int = 8
    projection: int = 64
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 30
    seed: int = 0


def pretrain(
    settings: PretrainingSettings, progress: Progress | None = None
) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Train the encoder on `data.pretraining`; on one machine, the same settings give the same weights.

    The loss is CLIP's, except that all images with equal captions are positives of that caption.

    Args:
        settings: model and schedule.
        progress: called after each step with (steps done, steps, loss).
    """
    images, captions = pretraining()
    words = tokenizer(vocabulary(captions))
    ids = words(captions, padding=True, return_tensors="pt")["input_ids"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build(len(words), settings.width, settings.layers, settings.patch, settings.projection)
    _fit(model, torch.from_numpy(images), ids, settings, progress or (lambda *_: None))
    return model.eval(), words


def save(model: CLIPModel, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer and image processor as ``from_pretrained`` expects them."""
    save_model(model, folder)
    words.save_pretrained(folder)
    image_processor().save_pretrained(folder)


def _fit(
    model: CLIPModel,
    images: UInt8[Tensor, "n h w 3"],
    ids: Int[Tensor, "n words"],
    settings: PretrainingSettings,
    progress: Progress,
) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD

    def loss_of() -> Tensor:
        rows = torch.randperm(len(pixels), generator=generator)[: settings.batch_size]
        return _loss(model, _shifted(pixels[rows], generator), ids[rows])

    fit(model, settings, loss_of, progress, weight_decay=settings.weight_decay)


def _shifted(pixels: Float[Tensor, "n 3 h w"], generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Shift the batch by up to two pixels, since the model would soon memorize a few hundred images."""
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(pixels, (dy, dx), dims=(2, 3))


def _loss(model: CLIPModel, pixels: Float[Tensor, "n 3 h w"], ids: Int[Tensor, "n words"]) -> Float[Tensor, ""]:
    captions, which = torch.unique(ids, dim=0, return_inverse=True)
    logits = model(input_ids=captions, attention_mask=(captions != 0).long(), pixel_values=pixels).logits_per_image
    of_caption = torch.nn.functional.one_hot(which, len(captions)).to(logits)
    of_caption = of_caption / of_caption.sum(0)
    return (cross_entropy(logits, which) + cross_entropy(logits.T, of_caption.T)) / 2
