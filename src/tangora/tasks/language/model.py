"""Load decoder language models with their tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangora.errors import ModelError
from tangora.tasks.base import Base, pretrained, processor

if TYPE_CHECKING:
    from tangora.config.language import LanguageModel, LanguageTask

__all__ = ["decides", "load"]


def load(config: LanguageModel) -> Base:
    """Load the model and its tokenizer.

    Raises:
        ModelError: the model is no decoder, or the tokenizer has tokens that the model has not.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # deferred: it takes a second to import

    backbone: Any = pretrained(AutoModelForCausalLM, config)
    tokenizer = processor(AutoTokenizer, config)
    rows = backbone.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        fix = "use the tokenizer of the base, or resize the model's embeddings"
        what = f"the tokenizer has {len(tokenizer)} tokens, and the model {rows}"
        raise ModelError(what, where=config.model, fix=fix)
    return Base(config, backbone, tokenizer)


def decides(config: LanguageTask, base: Base, most: int) -> dict[str, Any]:
    """Return what affects answers besides rows and weights."""
    keys = ("separator", "stop", "normalize", "chat", "system")
    template = getattr(base.processor, "chat_template", None) if config.chatting else None
    return {"scale": None, "head": None, "generation": most, "template": template} | {k: getattr(config, k) for k in keys}
