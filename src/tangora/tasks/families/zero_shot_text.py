"""Texts by a sentence encoder: the class whose name lies nearest to the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.errors import DataError, ModelError
from tangora.tasks.base import Base, TextEncoder, pretrained, processor, weights_fingerprint
from tangora.tasks.values import evaluating, fingerprint_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.config.recipe import BaseConfig, TaskConfig
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["encode", "features", "load", "pad", "texts_of", "tokenize"]

SCALE = 20.0  # of sentence-transformers' contrastive losses


def load(config: BaseConfig) -> Base:
    """An encoder without its pooling head (nothing here uses it, and many checkpoints lack its weights)."""
    from transformers import AutoModel, AutoTokenizer

    backbone: Any = pretrained(AutoModel, config, optional="pooler.")
    if backbone.config.is_encoder_decoder:
        raise ModelError("text-zero-shot needs an encoder", got=type(backbone).__name__, where=config.model)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    tokenizer = processor(AutoTokenizer, config)
    if (positions := getattr(backbone.config, "max_position_embeddings", None)) is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    backbone.eval()

    def embed(texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        return _embed(backbone, tokenizer, config, texts)

    decides = [weights_fingerprint(backbone), config.pooling, config.max_length]
    return Base(config, backbone, tokenizer, "", TextEncoder(embed, fingerprint_of(decides)), config.scale or SCALE)


def features(backbone: nn.Module, config: BaseConfig, batch: Batch) -> Float[Tensor, "batch dim"]:
    """Token features pooled to one vector: their mean over the text, or that of the first token."""
    hidden: Tensor = backbone(**batch).last_hidden_state
    if config.pooling == "cls":
        return hidden[:, 0]
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def encode(table: Table, config: TaskConfig, base: Base) -> dict[str, list[Tensor] | Tensor]:
    """Token ids of the text column."""
    texts = texts_of(table, config.text, "text")
    return {"input_ids": tokenize(base.processor, texts, base.config.max_length, table.place)}


def texts_of(table: Table, column: str, key: str) -> list[str]:
    """A column of texts, complete.

    Raises:
        DataError: no such column, or a row without a text.
    """
    table.need(column, key)
    texts = table.column(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError("a text is missing or not a text", got=text, where=table.place(row, column))
    return texts


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_length: int, place: Callable[[int], str] = "text {}".format
) -> list[Tensor]:
    """Token ids per text, cut to ``max_length`` or what the model takes, not padded; ``place`` names a row in an error.

    Raises:
        DataError: a text has no tokens.
    """
    longest = min(max_length, tokenizer.model_max_length)
    rows = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"] if texts else []
    for row, ids in enumerate(rows):
        if not ids:
            raise DataError("a text has no tokens", got=texts[row], where=place(row), fix="drop the row")
    return [torch.tensor(ids, dtype=torch.int64) for ids in rows]


def pad(rows: Sequence[Tensor], value: int) -> Tensor:
    """1-D tensors as one, filled up on the right with ``value``."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _embed(backbone: nn.Module, tokenizer: Any, config: BaseConfig, texts: Sequence[str]) -> Tensor:
    ids = tokenize(tokenizer, texts, config.max_length, "class name {}".format)
    batch = {
        "input_ids": pad(ids, tokenizer.pad_token_id or 0),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
    }
    device = next(backbone.parameters()).device
    with evaluating(backbone), torch.no_grad():
        return features(backbone, config, {k: v.to(device) for k, v in batch.items()}).float().cpu()
