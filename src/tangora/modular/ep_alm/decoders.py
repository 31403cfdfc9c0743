"""The decoders that visual tokens can be put into, and their arguments with further columns in front."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["KINDS", "DecoderKind", "arguments", "kind_of", "positions_in_front"]

_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class DecoderKind:
    """The structure of a class of decoders.

    Attributes:
        blocks: path of the list of its layers.
        rotary: whether positions are rotations in every layer. If not, they are embeddings that are added in front of
            the first layer.
    """

    blocks: str
    rotary: bool


_LLAMA = DecoderKind("model.layers", rotary=True)
KINDS = {
    "gpt2": DecoderKind("transformer.h", rotary=False),
    "llama": _LLAMA,
    "opt": DecoderKind("model.decoder.layers", rotary=False),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""model_type -> structure. SmolLM2 is of type ``llama``."""


def kind_of(decoder: nn.Module) -> DecoderKind:
    """Return the structure of a decoder.

    Raises:
        ModelError: its class is unknown, or it computes attention in another way than by one mask for each layer.
    """
    config: Any = decoder.config
    kind, way = str(config.model_type), str(getattr(config, "_attn_implementation", "eager"))
    if kind not in KINDS:
        fix = f"use a decoder of type {', '.join(KINDS)}"
        raise ModelError("how this decoder masks its layers is not known", got=kind, where="base.model", fix=fix)
    if any("full" not in layer for layer in getattr(config, "layer_types", None) or ()):
        what = "some layers see a window of the last tokens, which slides past the visual token"
        raise ModelError(what, got=kind, where="base.model", fix="use a decoder with full attention in all layers")
    if way not in _ATTENTION:
        fix = f"load it with attention {' or '.join(_ATTENTION)}"
        raise ModelError("the layers take no mask of their own", got=way, where="base.model", fix=fix)
    return KINDS[kind]


def arguments(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward pass by their names, whether they were given by name or not."""
    bound = inspect.signature(module.forward).bind_partial(*inputs)
    return {**bound.arguments, **named}


def positions_in_front(
    kind: DecoderKind, positions: Int[Tensor, "rows columns"], columns: int, *, first: bool
) -> Tensor:
    """Return the positions of a question with further columns in front.

    Rotations depend on differences of positions alone. So the question's are shifted, which changes nothing among
    them. Embeddings of positions stay those of the question: the columns in front have none, as in the paper.

    Args:
        kind: of the decoder.
        positions: of the question's tokens.
        columns: how many are put in front.
        first: whether the pass begins with these columns; if not, a cache has them.
    """
    moved = positions + columns if kind.rotary else positions
    if not first:
        return moved
    front = torch.arange(columns, device=positions.device)[None].expand(len(positions), -1)
    return torch.cat([front if kind.rotary else torch.zeros_like(front), moved], 1)
