"""A run of a few seconds, made offline: a random encoder of one layer, two tasks of a few rows, one mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from tangora.config.recipe import Recipe, load_recipe
from tangora.support.files import write_text

__all__ = ["tiny_recipe"]

_COLORS = ("red", "green", "blue")
_ROWS = {"train": 12, "test": 9}


def tiny_recipe(folder: Path) -> Recipe:
    """Write a base model and data into ``folder``, and return a recipe for them."""
    _model(folder / "model")
    source = {"jsonl": {split: str(_rows(folder, split)) for split in _ROWS}}
    task = {"source": source, "labels": list(_COLORS)}
    raw = {
        "name": "tiny",
        "base": {"family": "text-zero-shot", "model": str(folder / "model")},
        "tasks": [{"name": "plain", **task}, {"name": "good", **task, "templates": ["good {}"]}],
        "lora": {"r": 1, "target_modules": ["query"]},
        "training": {"steps": 2, "batch_size": 4},
        "modes": {"lora": {}},
        "fusion": {"methods": [{"method": "average"}]},
        "evaluation": {"bootstrap": 100},
    }
    write_text(folder / "recipe.yaml", json.dumps(raw))  # JSON is YAML
    return load_recipe(folder / "recipe.yaml")


def _model(folder: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "this", *_COLORS]
    size: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(pieces), max_position_embeddings=16, **size)).save_pretrained(folder)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)


def _rows(folder: Path, split: str) -> Path:
    rows = [{"text": f"this {_COLORS[i % 3]}" + " a" * (i % 4), "label": i % 3} for i in range(_ROWS[split])]
    path = folder / f"{split}.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
