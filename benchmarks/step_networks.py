"""The networks of `train_step.py`, from inputs to logits, the loss on top, and the naive expansion of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from step_models import Shape

__all__ = ["NETWORKS", "NaiveTangent", "WithLoss"]

CLASSES = 10


class Clip(nn.Module):
    """CLIP's image tower under a frozen zero-shot head of unit vectors."""

    head: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("head", F.normalize(torch.randn(CLASSES, 512), dim=-1))

    @staticmethod
    def base(shape: Shape) -> nn.Module:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        config = CLIPVisionConfig(projection_dim=512, patch_size=16, **shape.sizes)
        return CLIPVisionModelWithProjection(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return 100 * F.normalize(self.backbone(pixel_values=pixel_values).image_embeds, dim=-1) @ self.head.T


class Bert(nn.Module):
    """A sentence encoder: mean of the tokens, and a head as CLIP's."""

    head: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.config.hidden_size
        self.register_buffer("head", F.normalize(torch.randn(CLASSES, width), dim=-1))

    @staticmethod
    def base(shape: Shape) -> nn.Module:
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig(**shape.sizes), add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return 20 * F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1) @ self.head.T


class T5(nn.Module):
    """T5 with teacher forcing."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    @staticmethod
    def base(shape: Shape) -> nn.Module:
        from transformers import T5Config, T5ForConditionalGeneration

        special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
        options = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "use_cache": False}
        return T5ForConditionalGeneration(T5Config(**options, **special, **shape.sizes))

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.backbone(**inputs).logits
        return logits


class Llama(nn.Module):
    """A decoder with grouped heads, trained on the next token."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    @staticmethod
    def base(shape: Shape) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(LlamaConfig(use_cache=False, **shape.sizes))

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.backbone(**inputs).logits
        return logits


NETWORKS: dict[str, Any] = {"clip": Clip, "bert": Bert, "t5": T5, "llama": Llama}


class NaiveTangent(nn.Module):
    """``f(x; φ₀) + J(x) (φ − φ₀)`` by `torch.func.jvp` over the network; its gradient goes backward through the jvp.

    The network's attention must have a forward derivative ("eager").
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._start = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}

    def forward(self, **inputs: Tensor) -> Tensor:
        parameters = dict(self.network.named_parameters())
        moved = {name: parameters[name] - start for name, start in self._start.items()}

        def logits(values: dict[str, Tensor]) -> Tensor:
            found: Tensor = torch.func.functional_call(self.network, values, (), inputs)
            return found

        primal, tangent = torch.func.jvp(logits, (self._start,), (moved,))
        return primal + tangent


class WithLoss(nn.Module):
    """Logits and their cross-entropy with ``labels``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        logits = self.network(**inputs)
        return {"loss": F.cross_entropy(logits.flatten(0, -2), labels.flatten()), "logits": logits}
