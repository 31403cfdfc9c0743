"""Tokenize columns of texts, and load encoders that pool features to one vector per text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.errors import DataError, ModelError
from tangora.tasks.base import pretrained, processor, refuse_other_tokens, take_out, weights_fingerprint
from tangora.tasks.batches import Collator
from tangora.tasks.values import Encoded, evaluating, fingerprint_of
from tangora.tasks.zero_shot import TextEncoder, ZeroShotBase

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.config.tasks import BaseConfig, BaseSettings
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["cut_rows", "encoder", "load", "pooled", "texts_of", "tokenize", "tokenize_rows"]

_AT_ONCE = 1024
SCALE = 20.0  # of sentence-transformers' contrastive losses


def encoder(config: BaseSettings, unused: Sequence[str] = ()) -> tuple[nn.Module, Any]:
    """Load an encoder and its tokenizer, which truncates texts to the encoder's maximum length.

    Args:
        config: the base's settings.
        unused: children of the encoder to remove; the checkpoint may lack their weights.

    Raises:
        ModelError: the checkpoint cannot be loaded, or has another kind of model.
    """
    from transformers import AutoModel, AutoTokenizer  # deferred: it takes a second to import

    backbone: Any = pretrained(AutoModel, config, unused=unused)
    if backbone.config.is_encoder_decoder:
        raise ModelError(f"{config.family} needs an encoder", got=type(backbone).__name__, where=config.model)
    take_out(backbone, unused)
    tokenizer = processor(AutoTokenizer, config)
    refuse_other_tokens(tokenizer, backbone, config.model)
    if (positions := getattr(backbone.config, "max_position_embeddings", None)) is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return backbone.eval(), tokenizer


def load(config: BaseConfig, unused: Sequence[str]) -> ZeroShotBase:
    """Load a sentence encoder that also embeds class names."""
    backbone, tokenizer = encoder(config, unused)
    padding = Collator(tokenizer.pad_token_id or 0)

    def embed(texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        ids = tokenize(tokenizer, texts, config.max_length, "class name {}".format)
        batch = padding([{"input_ids": row, "labels": 0} for row in ids])
        del batch["labels"]
        device = next(backbone.parameters()).device
        with evaluating(backbone), torch.no_grad():
            return pooled(backbone, {k: v.to(device) for k, v in batch.items()}, config.pooling).float().cpu()

    text = TextEncoder(embed, fingerprint_of([weights_fingerprint(backbone), config.pooling, config.max_length]))
    return ZeroShotBase(config, backbone, tokenizer, text=text, scale=config.scale or SCALE)


def pooled(backbone: nn.Module, batch: Batch, pooling: str) -> Float[Tensor, "batch dim"]:
    """Pool token features to one vector per text: their mean, or the first token's (``cls``)."""
    hidden: Tensor = backbone(**batch).last_hidden_state
    if pooling == "cls":
        return hidden[:, 0]
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def texts_of(table: Table, column: str, key: str) -> list[str]:
    """Return a column of texts.

    Raises:
        DataError: there is no such column, or a row has no text.
    """
    table.need(column, key)
    texts = table.column(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError("a text is missing or not a text", got=text, where=table.place(row, column))
        if not text.strip():
            raise DataError("a text is empty", got=text, where=table.place(row, column), fix="drop the row")
    return texts


def tokenize_rows(tokenizer: Any, texts: Sequence[str], max_length: int, place: Callable[[int], str]) -> Encoded:
    """Return ``input_ids`` of `tokenize`, with the numbers of the rows that lost tokens."""
    ids, longest = tokenize(tokenizer, texts, max_length, place), min(max_length, tokenizer.model_max_length)
    return Encoded({"input_ids": ids}, cut_rows(tokenizer, [texts], ids, longest), longest)


def cut_rows(
    tokenizer: Any, columns: Sequence[Sequence[str]], ids: Sequence[Sequence[int] | Tensor], longest: int
) -> list[int]:
    """Return the numbers of the rows that lost tokens. Only rows that are as long as allowed are converted again.

    Args:
        tokenizer: that made the tokens.
        columns: of one text per row; two for pairs.
        ids: the tokens of each row.
        longest: the number of tokens that rows were cut to.
    """
    full, cut = [row for row, tokens in enumerate(ids) if len(tokens) >= longest], []
    for start in range(0, len(full), _AT_ONCE):  # a few at a time: whole documents can be much longer
        rows = full[start : start + _AT_ONCE]
        whole = tokenizer(*([texts[row] for row in rows] for texts in columns), verbose=False)["input_ids"]
        cut += [row for row, tokens in zip(rows, whole, strict=True) if len(tokens) > len(ids[row])]
    return cut


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_length: int, place: Callable[[int], str] = "text {}".format
) -> list[Tensor]:
    """Return token ids per text, unpadded, truncated to ``max_length`` or the model's; ``place`` names a row in errors.

    Raises:
        DataError: a text has no tokens.
    """
    longest = min(max_length, tokenizer.model_max_length)
    rows = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"] if texts else []
    for row, ids in enumerate(rows):
        if not ids:
            raise DataError("a text has no tokens", got=texts[row], where=place(row), fix="drop the row")
    return [torch.tensor(ids, dtype=torch.int64) for ids in rows]
