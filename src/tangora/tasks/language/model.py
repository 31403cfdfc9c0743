"""Load decoder language models with their tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tangora.errors import ModelError
from tangora.tasks.base import Base, pretrained, processor, refuse_other_tokens
from tangora.tasks.language.logits import takes
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from tangora.config.language import LanguageModel, LanguageTask

__all__ = ["decides", "load"]

_MIXED = 1e-3  # of the largest logit: far above rounding in float32, far below what another row in sight changes


def load(config: LanguageModel) -> Base:
    """Load the model and its tokenizer.

    Raises:
        ModelError: the model is no decoder, or the tokenizer has tokens that the model has not.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # deferred: it takes a second to import

    backbone: Any = pretrained(AutoModelForCausalLM, config)
    tokenizer = processor(AutoTokenizer, config)
    refuse_other_tokens(tokenizer, backbone, config.model)
    if config.packing:
        _refuse_mixing(backbone, config.model)
    return Base(config, backbone, tokenizer)


def _refuse_mixing(backbone: Any, where: str) -> None:
    """Refuse packing for a model in which a row's logits depend on the rows that are packed with it.

    Raises:
        ModelError: the class does not separate rows by their positions, or not with this implementation of attention.
    """
    if not takes(backbone, "position_ids"):
        fix = "set base.packing: false"
        raise ModelError(
            "the model has no positions that keep rows apart", got=type(backbone).__name__, where=where, fix=fix
        )
    ids = torch.arange(8)[None] % backbone.config.get_text_config().vocab_size
    places = torch.arange(4).repeat(2)[None]
    with evaluating(backbone), torch.no_grad():
        alone = backbone(input_ids=ids[:, 4:], use_cache=False).logits
        packed = backbone(input_ids=ids, position_ids=places, use_cache=False).logits[:, 4:]
    if not torch.allclose(packed, alone, rtol=0, atol=_MIXED * float(alone.abs().max())):
        fix = "set base.packing: false"
        raise ModelError("the model does not keep packed rows apart", got=type(backbone).__name__, where=where, fix=fix)


def decides(config: LanguageTask, base: Base, most: int) -> dict[str, Any]:
    """Return what affects answers besides rows and weights."""
    keys = ("separator", "stop", "normalize", "chat", "chat_arguments", "system")
    template = getattr(base.processor, "chat_template", None) if config.chatting else None
    return {"scale": None, "head": None, "generation": most, "template": template} | {
        k: getattr(config, k) for k in keys
    }
