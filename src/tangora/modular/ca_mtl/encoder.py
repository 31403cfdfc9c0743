"""The places in a BERT-like encoder that CA-MTL conditions, and the encoders that do not have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tangora.errors import ModelError

__all__ = ["Encoder", "encoder_of"]

_WHERE = "base.model"
_NORMS = {"attention": "attention.output.LayerNorm", "output": "output.LayerNorm"}


@dataclass(frozen=True)
class Encoder:
    """The parts of an encoder.

    Attributes:
        embeddings: its output is what conditional alignment scales and shifts.
        stack: contains the layers, and returns the hidden states of the last one.
        layers: from below.
    """

    embeddings: nn.Module
    stack: nn.Module
    layers: tuple[nn.Module, ...]

    @property
    def width(self) -> int:
        """The width d of hidden states."""
        return int(self.norms(0)["output"].normalized_shape[0])

    @property
    def embedded(self) -> int:
        """The width of embeddings, which differs from d in small ELECTRAs."""
        return int(_norm(self.embeddings, "LayerNorm").normalized_shape[0])

    def attention(self, layer: int) -> nn.Module:
        """Return the module that computes a layer's attention."""
        return self.layers[layer].get_submodule("attention.self")

    def norms(self, layer: int) -> Mapping[str, nn.LayerNorm]:
        """Return a layer's norms: after the attention, and at its output."""
        return {name: _norm(self.layers[layer], path) for name, path in _NORMS.items()}

    def weights(self, layers: Iterable[int]) -> dict[str, nn.Parameter]:
        """Return the parameters of some layers, by their names in the backbone."""
        return {f"encoder.layer.{i}.{name}": value for i in layers for name, value in self.layers[i].named_parameters()}


def encoder_of(backbone: nn.Module) -> Encoder:
    """Return the parts of a backbone.

    Raises:
        ModelError: it is no encoder with the layers of BERT, or its attention takes no bias.
    """
    config: Any = getattr(backbone, "config", None)
    name = type(backbone).__name__
    fix = "use BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA or another encoder with these layers"
    stack: Any = getattr(backbone, "encoder", None)
    layers = tuple(getattr(stack, "layer", ()))
    lacking = _lacking(backbone, layers)
    if lacking is not None:
        raise ModelError(
            f"ca-mtl needs an encoder with the layers of BERT, and {name} has {lacking}", where=_WHERE, fix=fix
        )
    if getattr(config, "is_decoder", False):
        raise ModelError("ca-mtl needs an encoder, and this model is a decoder", got=name, where=_WHERE, fix=fix)
    return Encoder(backbone.get_submodule("embeddings"), stack, layers)


def _lacking(backbone: nn.Module, layers: tuple[nn.Module, ...]) -> str | None:
    """Return what a backbone has otherwise than BERT; None if nothing."""
    if not isinstance(getattr(getattr(backbone, "embeddings", None), "LayerNorm", None), nn.LayerNorm):
        return "no norm after its embeddings"
    if not layers:
        return "no encoder.layer"
    for path in _NORMS.values():  # models with norms before the sub-layers have them at other places
        if not isinstance(_at(layers[0], path), nn.LayerNorm):
            return f"no {path} in its layers"
    if not isinstance(_at(layers[0], "attention.self.query"), nn.Module):  # DeBERTa computes positions inside
        return "another attention"
    return None


def _at(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _norm(module: nn.Module, path: str) -> nn.LayerNorm:
    found = module.get_submodule(path)
    assert isinstance(found, nn.LayerNorm)
    return found
