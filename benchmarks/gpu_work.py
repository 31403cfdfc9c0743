"""What `gpu.py` scores: random networks in a dtype, rows of noise, random adapters; and scoring as with peft alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from step_models import CLIP_BASE, CLIP_TINY, LLAMA_1B, LLAMA_TINY, TARGETS, made_on
from sweep_work import random_updates
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter, Metadata
from tangora.config.recipe import BaseConfig
from tangora.storage.held import hold_
from tangora.support.machine import Machine
from tangora.tasks import Base
from tangora.tasks.images import features
from tangora.tasks.texts import pooled
from tangora.tasks.values import Split
from tangora.tasks.zero_shot import ZeroShotTask

__all__ = ["WORKS", "Work", "adapters_of", "autocast", "make_base", "make_task", "peft_model", "plain_scores"]

FAMILIES = {"clip": "image-zero-shot", "llama": "text-zero-shot"}


@dataclass(frozen=True)
class Work:
    """A network, and rows that it classifies by vectors of their classes.

    Args:
        title: what the table says.
        family: ``clip`` or ``llama``; the latter without its head, its tokens averaged.
        sizes: arguments of the architecture's configuration.
        rows: of the task; ``column_rows`` of them get columns.
        batch: rows of a forward pass.
        lengths: fewest and most tokens of a row.
        vectors: task vectors that get columns.
    """

    title: str
    family: str
    sizes: Mapping[str, int]
    rows: int
    column_rows: int
    batch: int
    lengths: tuple[int, int] = (0, 0)
    vectors: int = 4
    classes: int = 10
    rank: int = 16


WORKS = {
    "clip-vit-b16": Work("CLIP ViT-B/16, batches of 64", "clip", CLIP_BASE, 2048, 512, 64, vectors=8),
    "llama-1b": Work("Llama of 1.2 B parameters, batches of 32", "llama", LLAMA_1B, 1024, 128, 32, (32, 128)),
    "tiny-clip": Work("a tiny CLIP", "clip", CLIP_TINY, 6, 4, 2, vectors=2, rank=2),
    "tiny-llama": Work("a tiny Llama", "llama", LLAMA_TINY, 6, 4, 2, (3, 7), vectors=2, rank=2),
}


def network(work: Work, device: str, seed: int = 0) -> nn.Module:
    """The network in float32, made on the device; frozen."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaModel

    torch.manual_seed(seed)
    with made_on(device, "float32"):
        if work.family == "clip":
            model: Any = CLIPVisionModelWithProjection(
                CLIPVisionConfig(projection_dim=512, patch_size=16, **work.sizes)
            )
        else:
            model = LlamaModel(LlamaConfig(use_cache=False, **work.sizes))
    return model.requires_grad_(False).eval()


def make_base(work: Work, device: str, dtype: str) -> Base:
    """The network as a run holds it: matrices in the dtype, products too."""
    config = BaseConfig(family=FAMILIES[work.family], model="random", weights_dtype=dtype)
    backbone = hold_(network(work, device), getattr(torch, dtype))
    return Base(config, backbone, None, fingerprint="random", machine=Machine(device, dtype))


def make_task(work: Work, rows: int | None = None, seed: int = 1) -> ZeroShotTask:
    """Rows of noise with random labels, and random unit vectors of the classes."""
    draw, count = torch.Generator().manual_seed(seed), rows or work.rows
    if work.family == "clip":
        side, width = work.sizes["image_size"], 512
        inputs: dict[str, Any] = {"pixel_values": torch.randn(count, 3, side, side, generator=draw)}
    else:
        width, (low, high) = work.sizes["hidden_size"], work.lengths
        lengths = torch.randint(low, high + 1, (count,), generator=draw).tolist()
        ids = [torch.randint(1, work.sizes["vocab_size"], (length,), generator=draw) for length in lengths]
        inputs = {"input_ids": ids}
    head = F.normalize(torch.randn(work.classes, width, generator=draw), dim=-1)
    targets = torch.randint(work.classes, (count,), generator=draw).tolist()
    names, splits = (
        [str(c) for c in range(work.classes)],
        {"test": Split(inputs, targets, fingerprint=f"random {seed}")},
    )
    family = FAMILIES[work.family]
    return ZeroShotTask("noise", family, "accuracy", names, splits, f"random {seed}", head=head, scale=20.0)


def adapters_of(work: Work, backbone: nn.Module, count: int, *, tangent: bool = False) -> dict[str, Adapter]:
    """Random adapters that share A; scored by their weights, or as directions in which the network is expanded."""
    metadata = Metadata(train="tangent", linearize="model") if tangent else Metadata()
    targets = TARGETS[work.family]
    updates = {f"v{i}": random_updates(backbone, targets, work.rank, i) for i in range(count)}
    return {name: Adapter(dict(update), metadata) for name, update in updates.items()}


def peft_model(work: Work, adapter: Adapter, device: str, dtype: str) -> nn.Module:
    """The same network in the dtype, with the same adapter by peft."""
    import peft

    model = network(work, device)
    for parameter in model.parameters():  # buffers stay: tables of positions would be rounded
        parameter.data = parameter.data.to(getattr(torch, dtype))
    config = peft.LoraConfig(r=work.rank, lora_alpha=2 * work.rank, target_modules=TARGETS[work.family])
    adapted = peft.get_peft_model(model, config).eval()
    layers = dict(adapted.get_base_model().named_modules())
    for site, update in adapter.updates.items():
        factors: Any = update.factors()
        layers[site].lora_A["default"].weight.data.copy_(factors.a)
        layers[site].lora_B["default"].weight.data.copy_(factors.b)
    return adapted


def plain_scores(
    model: nn.Module, task: ZeroShotTask, batches: Sequence[tuple[list[int], dict[str, Tensor]]], dtype: str
) -> tuple[list[int], Tensor]:
    """Answers and losses of every row, by nothing but the network."""
    device = next(model.parameters()).device
    head, answers = task.head.to(device), [0] * len(task.splits["test"])
    losses = torch.empty(len(answers))
    with torch.no_grad():
        for rows, batch in batches:
            placed = {name: value.to(device) for name, value in batch.items()}
            labels = placed.pop("labels")
            with autocast(str(device), dtype):
                found = features(model, placed) if "pixel_values" in placed else pooled(model, placed, "mean")
            logits = task.scale * F.normalize(found.float(), dim=-1) @ head.T
            losses[rows] = F.cross_entropy(logits, labels, reduction="none").cpu()
            for row, answer in zip(rows, logits.argmax(-1).tolist(), strict=True):
                answers[row] = answer
    return answers, losses


def autocast(device: str, dtype: str) -> AbstractContextManager[Any]:
    """Products in the dtype, if it is not float32."""
    return Machine(device, dtype).autocast()
