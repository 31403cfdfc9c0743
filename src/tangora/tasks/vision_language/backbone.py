"""A decoder and a vision tower as one frozen network, and the base that holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tangora.errors import ModelError
from tangora.tasks.base import Base, pretrained, processor, refuse_other_tokens
from tangora.tasks.images import image_processor
from tangora.tasks.language.logits import takes

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.config.vision_language import VisionLanguageModel

__all__ = ["TwoTowers", "VisionLanguageBase", "load"]

# model_type of a checkpoint -> the class of its vision tower, and what it has to be made without
_TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPVisionModel", {}),
    "clip_vision_model": ("CLIPVisionModel", {}),
    "vit": ("ViTModel", {"add_pooling_layer": False}),
}


class TwoTowers(nn.Module):
    """A decoder beside a vision tower. It answers as the decoder does; ``pixel_values`` are for what is added to it.

    Args:
        decoder: a causal language model of transformers.
        vision: a vision tower of transformers.
    """

    base_model_prefix = ""  # peft asks every model with parts of transformers

    def __init__(self, decoder: nn.Module, vision: nn.Module) -> None:
        super().__init__()
        self.decoder, self.vision = decoder, vision

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Return the decoder's output; positions and ``logits_to_keep`` are passed on if its class knows them."""
        named = {"position_ids": position_ids, "logits_to_keep": logits_to_keep}
        return self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **{name: value for name, value in named.items() if takes(self.decoder, name)},
        )

    @property
    def config(self) -> Any:
        """The decoder's configuration."""
        return self.decoder.config

    @property
    def generation_config(self) -> Any:
        """The decoder's."""
        return self.decoder.generation_config

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's embeddings of tokens."""
        return self._decoder.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder's output layer."""
        return self._decoder.get_output_embeddings()  # type: ignore[no-any-return]

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute the decoder's activations in the backward pass."""
        self._decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Stop recomputing activations."""
        self._decoder.gradient_checkpointing_disable()

    @property
    def _decoder(self) -> Any:
        return self.decoder


@dataclass(kw_only=True, repr=False)
class VisionLanguageBase(Base):
    """A base that reads images and texts.

    Attributes:
        images: the image processor of the vision tower; ``processor`` is the decoder's tokenizer.
    """

    images: Any


def load(config: VisionLanguageModel) -> VisionLanguageBase:
    """Load both towers, the tokenizer of one and the image processor of the other.

    Raises:
        ModelError: a model is not found, is no decoder or no vision tower that can be used, or is to be spread.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # deferred: it takes a second to import

    if config.device_map is not None:
        fix = "leave base.device_map out"
        raise ModelError("two towers are not spread over devices", where="base.device_map", fix=fix)
    decoder, tokenizer = pretrained(AutoModelForCausalLM, config), processor(AutoTokenizer, config)
    refuse_other_tokens(tokenizer, decoder, config.model)
    of_vision = config.model_copy(update={"model": config.vision, "revision": config.vision_revision})
    vision = pretrained(_Tower(), of_vision, fix="use a checkpoint of CLIP or ViT")
    return VisionLanguageBase(config, TwoTowers(decoder, vision), tokenizer, images=image_processor(of_vision))


class _Tower:
    """``from_pretrained`` of the vision tower of a checkpoint, in the class for the tower alone."""

    def from_pretrained(self, name: str, **options: Any) -> Any:
        import transformers  # deferred: it takes a second to import

        source = {key: options[key] for key in ("revision", "trust_remote_code")}
        kind = str(transformers.AutoConfig.from_pretrained(name, **source).model_type)
        if kind not in _TOWERS:
            fix = "use a checkpoint of CLIP or ViT"
            raise ModelError("no vision tower for this kind of model", got=kind, where="base.vision", fix=fix)
        chosen, without = _TOWERS[kind]
        return getattr(transformers, chosen).from_pretrained(name, **options, **without)
