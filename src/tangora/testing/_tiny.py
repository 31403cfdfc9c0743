"""A base model of two layers and tasks of a few rows, made in memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from tangora.config.tasks import BaseConfig
from tangora.support.files import write_safetensors
from tangora.tasks.base import weights_fingerprint
from tangora.tasks.values import Split, fingerprint_of
from tangora.tasks.zero_shot import TextEncoder, ZeroShotBase, ZeroShotTask

__all__ = ["tiny_base", "tiny_tasks"]

_WORDS, _WIDTH, _CLASSES = 40, 16, 3


def tiny_base(folder: Path | None = None) -> ZeroShotBase:
    """Return an encoder of random weights, the same every time; with a folder, its files are there."""
    config = BertConfig(
        vocab_size=_WORDS,
        hidden_size=_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        backbone = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    if folder is not None:
        write_safetensors(folder / "model.safetensors", backbone.state_dict())
        config.save_pretrained(folder)
    return ZeroShotBase(
        config=BaseConfig(family="text-zero-shot", model="tiny" if folder is None else str(folder)),
        backbone=backbone,
        processor=SimpleNamespace(pad_token_id=0),
        fingerprint=weights_fingerprint(backbone),
        text=TextEncoder(_no_texts, "none"),
        scale=20.0,
    )


def _no_texts(texts: object) -> torch.Tensor:
    raise AssertionError("the tiny base embeds no texts")


def tiny_tasks(count: int) -> list[ZeroShotTask]:
    """Return tasks of three classes. One word in each row determines its class; rows and classes differ by task."""
    return [_task(f"task{index}", torch.Generator().manual_seed(index)) for index in range(count)]


def _task(name: str, generator: torch.Generator) -> ZeroShotTask:
    head = normalize(torch.randn(_CLASSES, _WIDTH, generator=generator), dim=-1)
    splits = {split: _rows(count, generator) for split, count in (("train", 12), ("validation", 6), ("test", 9))}
    print_ = fingerprint_of([name, head, [split.fingerprint for split in splits.values()]])
    labels = [str(i) for i in range(_CLASSES)]
    return ZeroShotTask(name, "text-zero-shot", "accuracy", labels, splits, print_, head=head, scale=20.0)


def _rows(count: int, generator: torch.Generator) -> Split:
    labels = [i % _CLASSES for i in range(count)]
    lengths = torch.randint(2, 6, (count,), generator=generator).tolist()
    filler = [torch.randint(10, _WORDS, (length,), generator=generator) for length in lengths]
    ids = [torch.cat([torch.tensor([1, 2 + label]), words]) for label, words in zip(labels, filler, strict=True)]
    return Split({"input_ids": ids}, labels)
