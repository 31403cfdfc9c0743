"""Logits and losses of target tokens by a decoder.

Logits of a whole vocabulary are large: a batch of 16 rows with 500 targets has 4 GB of them with 128,000 tokens, and
cross-entropy keeps as much again for the backward pass. Training needs losses only. So the targets' last hidden states
go through the output layer in chunks, whose logits are dropped and computed again in the backward pass.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tangora.tasks.batches import IGNORED
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.values import Batch

__all__ = ["Layers", "layers_of", "positions", "seen", "takes", "target_logits", "target_losses"]

CHUNK = 2**24
"""The largest number of logits that exist at once in `target_losses`: 64 MB in float32."""

_CLOSE = 1e-2  # of the largest logit, in half precision too; without a scale or cap of the class, they differ by more


def takes(model: nn.Module, name: str) -> bool:
    """Return whether the forward pass of a model has an argument of this name; a `PeftModel` passes all on."""
    return name in inspect.signature(_inner(model).forward).parameters


def positions(mask: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    """Return the position of each token among those of its row; padding in front has position 0."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def seen(inputs: Batch) -> Batch:
    """Return the entries of a batch that a model reads beside tokens: images."""
    return {name: inputs[name] for name in ("pixel_values",) if name in inputs}


def target_logits(
    backbone: nn.Module, inputs: Batch, labels: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens vocabulary"]:
    """Return the logits of target tokens by the model itself, in its dtype.

    Args:
        backbone: the decoder, or a `PeftModel` around it.
        inputs: of `tangora.tasks.language.collation`, packed or not.
        labels: of the batch.
    """
    model: Any = backbone
    chosen = labels != IGNORED
    named = _named(backbone, inputs)
    partly = takes(backbone, "logits_to_keep")
    if "places" not in inputs:
        if partly:
            named["logits_to_keep"] = labels.shape[1]
        logits: Tensor = model(**named).logits
        return logits[:, -labels.shape[1] :]
    places = inputs["places"][chosen]
    if partly:
        named["logits_to_keep"] = places
    found = model(**named).logits[0]
    found = found if partly else found[places]
    logits = found.new_zeros(*labels.shape, found.shape[-1])
    return logits.masked_scatter(chosen[..., None], found)


@dataclass(frozen=True)
class Layers:
    """A decoder in two parts.

    Attributes:
        body: all up to the last hidden states.
        head: the output layer.
        cap: the value of Gemma's ``final_logit_softcapping``: ``cap · tanh(logits / cap)``; None without it.
        width: the size of the vocabulary.
    """

    body: nn.Module
    head: nn.Module
    cap: float | None
    width: int

    def hidden(self, named: dict[str, Any]) -> Float[Tensor, "rows columns dim"]:
        """Return the last hidden states."""
        hidden: Tensor = self.body(**named).last_hidden_state
        return hidden

    def logits(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocabulary"]:
        """Return the logits of hidden states."""
        logits: Tensor = self.head(hidden)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def layers_of(backbone: nn.Module) -> Layers | None:
    """Return a decoder in two parts; None if they do not give its logits, since its class scales them, say."""
    inner = _inner(backbone)
    body, head = getattr(inner, "base_model", None), inner.get_output_embeddings()
    if body is None or body is inner or head is None:
        return None
    config = inner.config.get_text_config()
    layers = Layers(body, head, getattr(config, "final_logit_softcapping", None), int(config.vocab_size))
    ids = torch.arange(4, device=next(inner.parameters()).device)[None] % layers.width
    with evaluating(inner), torch.no_grad():
        whole = inner(input_ids=ids, use_cache=False).logits.float()
        parts = layers.logits(layers.hidden({"input_ids": ids, "use_cache": False})).float().to(whole.device)
    return layers if bool((parts - whole).abs().max() <= _CLOSE * whole.abs().max()) else None


def target_losses(
    layers: Layers, inputs: Batch, labels: Int[Tensor, "rows tokens"], chunk: int = CHUNK
) -> Float[Tensor, " rows"]:
    """Return the mean cross-entropy over each row's target tokens, without the logits of more than one chunk.

    Args:
        layers: of the decoder.
        inputs: of `tangora.tasks.language.collation`, packed or not.
        labels: of the batch.
        chunk: the largest number of logits at once.
    """
    hidden = layers.hidden(_named(layers.body, inputs)).to(labels.device)
    chosen = labels != IGNORED
    states = hidden[0, inputs["places"][chosen]] if "places" in inputs else hidden[:, -labels.shape[1] :][chosen]
    targets = labels[chosen]
    size = max(1, chunk // layers.width)
    pieces = list(zip(states.split(size), targets.split(size), strict=True))
    again = len(pieces) > 1 and torch.is_grad_enabled()
    losses = torch.cat([_chunk(layers, x, y, again=again) for x, y in pieces])
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[chosen]
    return losses.new_zeros(len(labels)).index_add(0, rows, losses) / chosen.sum(1)


def _chunk(layers: Layers, states: Tensor, targets: Tensor, *, again: bool) -> Tensor:
    def losses(states: Tensor, targets: Tensor) -> Tensor:
        logits = layers.logits(states).to(states.device)
        return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")

    if not again:
        return losses(states, targets)
    computed: Tensor = checkpoint(losses, states, targets, use_reentrant=False)
    return computed


def _named(model: nn.Module, inputs: Batch) -> dict[str, Any]:
    """Return the arguments of a forward pass; the last token of a row is a target, and never read."""
    if "places" in inputs:
        return {"input_ids": inputs["input_ids"], "position_ids": inputs["position_ids"], "use_cache": False}
    ids, mask = inputs["input_ids"][:, :-1], inputs["attention_mask"][:, :-1]
    named: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **seen(inputs)}
    return named | ({"position_ids": positions(mask)} if takes(model, "position_ids") else {})


def _inner(model: nn.Module) -> Any:
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
