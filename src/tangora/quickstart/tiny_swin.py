"""A Swin of three stages, small enough to pretrain in a minute or two on one core, of stock transformers classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from tangora.quickstart.data import SIZE, TEMPLATES, pretraining
from tangora.quickstart.fitting import fit, save_model
from tangora.quickstart.model import PIXEL_MEAN, PIXEL_STD

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor
    from transformers import SwinModel

    from tangora.quickstart.fitting import Progress

__all__ = ["SwinSettings", "build", "classes_of", "pretrain", "save"]


@dataclass(frozen=True)
class SwinSettings:
    """The model's architecture and training; with the pictures, they decide its weights."""

    width: int = 24
    depths: tuple[int, ...] = (2, 2, 2)
    heads: tuple[int, ...] = (2, 4, 8)
    window: int = 4
    patch: int = 2
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 30
    seed: int = 0


def classes_of(captions: list[str]) -> tuple[list[int], int]:
    """Return the number of what each caption names, and how many things there are.

    >>> classes_of(["a photo of a cat", "a picture of a moon", "a photo of a moon"])
    ([0, 1, 1], 2)
    """
    named = []
    for caption in captions:
        prefix = next(one.format("") for one in TEMPLATES if caption.startswith(one.format("")))
        named.append(caption.removeprefix(prefix))
    things = sorted(set(named))
    return [things.index(name) for name in named], len(things)


def build(settings: SwinSettings, classes: int) -> Any:
    """Build the untrained classifier with torch's global generator; the caller seeds and forks it."""
    from transformers import SwinConfig, SwinForImageClassification  # deferred: it takes seconds to import

    keys: dict[str, Any] = {"image_size": SIZE, "patch_size": settings.patch, "window_size": settings.window}
    keys |= {"embed_dim": settings.width, "depths": list(settings.depths), "num_heads": list(settings.heads)}
    keys |= {"drop_path_rate": 0.0, "num_labels": classes}
    return SwinForImageClassification(SwinConfig(**keys))


def pretrain(settings: SwinSettings, progress: Progress | None = None) -> tuple[SwinModel, None]:
    """Train the model to tell what is on the pictures of `data.pretraining`, and return it without the classifier.

    On one machine, the same settings give the same weights.

    Args:
        settings: model and schedule.
        progress: called after each step with (steps done, steps, loss).
    """
    images, captions = pretraining()
    numbers, classes = classes_of(captions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build(settings, classes)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD
    _fit(model, pixels, torch.tensor(numbers), settings, progress or (lambda *_: None))
    backbone: SwinModel = model.swin.eval()
    return backbone, None


def save(model: SwinModel, _: None, folder: Path) -> None:
    """Write the model and its image processor as ``from_pretrained`` expects them."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # deferred: it takes seconds

    save_model(model, folder)
    side = {"height": SIZE, "width": SIZE}
    ViTImageProcessorPil(size=side, image_mean=[PIXEL_MEAN] * 3, image_std=[PIXEL_STD] * 3).save_pretrained(folder)


def _fit(
    model: Any, pixels: Float[Tensor, "n 3 h w"], numbers: Tensor, settings: SwinSettings, progress: Progress
) -> None:
    generator = torch.Generator().manual_seed(settings.seed)

    def loss_of() -> Tensor:
        rows = torch.randperm(len(pixels), generator=generator)[: settings.batch_size]
        dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()  # shifted, so that none is memorized
        logits = model(pixel_values=torch.roll(pixels[rows], (dy, dx), dims=(2, 3))).logits
        return cross_entropy(logits, numbers[rows])

    fit(model, settings, loss_of, progress, weight_decay=settings.weight_decay)
