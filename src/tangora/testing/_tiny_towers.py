"""A base of two towers and tasks of a few rows with images, made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tangora.config.vision_language import VisionLanguageModel, VisionLanguageTask
from tangora.quickstart.model import tokenizer, vocabulary
from tangora.support.files import write_safetensors
from tangora.tasks.base import weights_fingerprint
from tangora.tasks.contract import AnswerForm
from tangora.tasks.language.task import LanguageModelTask
from tangora.tasks.values import Split, fingerprint_of
from tangora.tasks.vision_language.backbone import TwoTowers, VisionLanguageBase

__all__ = ["tiny_questions", "tiny_towers"]

_COLORS = ("red", "green", "blue")
_SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_towers(folder: Path | None = None) -> VisionLanguageBase:
    """Return two towers of random weights, the same every time; with a folder, their files are there."""
    words = tokenizer(vocabulary(["which color is this", *_COLORS]))
    texts = LlamaConfig(vocab_size=len(words), max_position_embeddings=32, eos_token_id=words.eos_token_id, **_SIZE)
    images = CLIPVisionConfig(image_size=8, patch_size=4, **_SIZE)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        backbone = TwoTowers(LlamaForCausalLM(texts), CLIPVisionModel(images)).eval().requires_grad_(False)
    named = {"model": "tiny", "vision": "tiny"}
    if folder is not None:
        named = {"model": str(folder), "vision": str(folder / "vision")}
        for home, tower in ((folder, backbone.decoder), (folder / "vision", backbone.vision)):
            home.mkdir(exist_ok=True)
            write_safetensors(home / "model.safetensors", tower.state_dict())
            tower.config.save_pretrained(home)  # type: ignore[operator,union-attr]
    return VisionLanguageBase(
        config=VisionLanguageModel(family="vision-language", max_length=32, max_new_tokens=3, **named),
        backbone=backbone,
        processor=words,
        fingerprint=weights_fingerprint(backbone),
        images=None,
    )


def tiny_questions(count: int) -> list[LanguageModelTask]:
    """Return tasks whose answer is the color of an image; rows differ by task."""
    return [_task(f"task{index}", torch.Generator().manual_seed(index)) for index in range(count)]


def _task(name: str, generator: torch.Generator) -> LanguageModelTask:
    splits = {split: _rows(count, generator) for split, count in (("train", 12), ("validation", 6), ("test", 9))}
    return LanguageModelTask(
        name,
        "vision-language",
        "exact_match",
        [],
        splits,
        fingerprint_of([name, [split.fingerprint for split in splits.values()]]),
        form=AnswerForm("text", "tokens"),
        config=VisionLanguageTask(name=name, source={"builtin": "digit-questions"}),
    )


def _rows(count: int, generator: torch.Generator) -> Split:
    words = tokenizer(vocabulary(["which color is this", *_COLORS]))
    colors = [i % len(_COLORS) for i in range(count)]
    pixels = 0.1 * torch.randn(count, 3, 8, 8, generator=generator)
    pixels[torch.arange(count), colors] += 1.0
    asked = ["which color", "which color is this"]
    ids = [torch.tensor(words(asked[i % 2])["input_ids"][:-1]) for i in range(count)]
    answers = [torch.tensor(words(_COLORS[color])["input_ids"][1:]) for color in colors]
    inputs: dict[str, list[torch.Tensor] | torch.Tensor] = {"input_ids": ids, "labels": answers, "pixel_values": pixels}
    return Split(inputs, [_COLORS[color] for color in colors])
