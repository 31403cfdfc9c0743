"""A CLIP small enough to pretrain in half a minute on two cores, made of stock transformers classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tangora.quickstart.data import SIZE

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "build", "image_processor", "tokenizer", "vocabulary"]

# The end token must not have id 2: transformers then uses the largest id as the end, for old checkpoints.
_SPECIAL = ("<pad>", "<start>", "<unk>", "<end>")
_MAX_TOKENS = 16
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


def vocabulary(texts: Sequence[str]) -> list[str]:
    """Return the special tokens, then every word of ``texts`` in alphabetical order."""
    return [*_SPECIAL, *sorted({word for text in texts for word in text.lower().split()})]


def tokenizer(words: Sequence[str], longest: int = _MAX_TOKENS) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per lower-case word, and ``<start> ... <end>`` around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # deferred: an extra
    from transformers import PreTrainedTokenizerFast  # deferred: it takes seconds to import

    ids = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in ("<start>", "<end>")]
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=longest,
    )


def image_processor() -> CLIPImageProcessorPil:
    """Return a processor that resizes to 32 pixels and computes (pixel / 255 - 0.5) / 0.25."""
    from transformers.models.clip.image_processing_pil_clip import (
        CLIPImageProcessorPil,  # deferred: it takes seconds to import
    )

    side = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size=side,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )


def build(words: int, width: int, layers: int, patch: int, projection: int) -> CLIPModel:
    """Build the untrained model with torch's global generator; the caller seeds and forks it."""
    from transformers import CLIPModel  # deferred: it takes seconds to import

    return CLIPModel(_config(words, width, layers, patch, projection))


def _config(words: int, width: int, layers: int, patch: int, projection: int) -> CLIPConfig:
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig  # deferred: it takes seconds to import

    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width // 2,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_MAX_TOKENS,
        projection_dim=projection,
        pad_token_id=_SPECIAL.index("<pad>"),
        bos_token_id=_SPECIAL.index("<start>"),
        eos_token_id=_SPECIAL.index("<end>"),
    )
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=patch,
        projection_dim=projection,
    )
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
