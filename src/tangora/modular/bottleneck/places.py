"""Find the sub-layers of a backbone that get an adapter: by the names of their linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Place", "find_places"]

_SUBLAYERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "attention": (
        ("attention.self.query", "attention.output.dense"),  # BERT, ELECTRA, RoBERTa, Swin v2
        ("attention.self.query_proj", "attention.output.dense"),  # DeBERTa v2
        ("attention.q_proj", "attention.o_proj"),  # Swin, ViT, DINOv2
        ("self_attn.q_proj", "self_attn.out_proj"),  # CLIP, SigLIP
        ("self_attn.q_proj", "self_attn.o_proj"),  # Llama and its kin
        ("SelfAttention.q", "SelfAttention.o"),  # T5
        ("attention.q_lin", "attention.out_lin"),  # DistilBERT
        ("attention.attn.q", "attention.attn.o"),  # MPNet
        ("attn.c_attn", "attn.c_proj"),  # GPT-2
    ),
    "ffn": (
        ("intermediate.dense", "output.dense"),
        ("mlp.fc1", "mlp.fc2"),
        ("mlp.gate_proj", "mlp.down_proj"),
        ("DenseReluDense.wi", "DenseReluDense.wo"),
        ("DenseReluDense.wi_0", "DenseReluDense.wo"),
        ("ffn.lin1", "ffn.lin2"),
        ("mlp.c_fc", "mlp.c_proj"),
        ("pwconv1", "pwconv2"),  # ConvNeXt
    ),
}
"""Kind -> the first and the last linear layer of a sub-layer, below a layer of the network."""


@dataclass(frozen=True)
class Place:
    """A sub-layer with an adapter.

    Attributes:
        kind: ``attention`` or ``ffn``.
        layer: the path of its layer.
        entry: the path of the module that gets the sub-layer's input.
        exit: the path of the module whose output is the sub-layer's, before the residual.
        width: of both.
    """

    kind: str
    layer: str
    entry: str
    exit: str
    width: int


def find_places(backbone: nn.Module, kinds: Sequence[str]) -> list[Place]:
    """Return the sub-layers of these kinds, in the order of the network.

    Raises:
        ModelError: there are none of a kind.
    """
    modules: dict[str, Any] = dict(backbone.named_modules())
    found = [place for name in modules for place in _exits_at(name, modules, kinds)]
    for kind in kinds:
        if not any(place.kind == kind for place in found):
            known = ", ".join(pair[1] for pair in _SUBLAYERS[kind])
            what, fix = f"no sub-layer of this kind is known, by layers named {known}", "leave it out of places"
            raise ModelError(what, got=type(backbone).__name__, where=f"places: {kind}", fix=fix)
    return found


def _exits_at(name: str, modules: Mapping[str, Any], kinds: Sequence[str]) -> Iterator[Place]:
    for kind in kinds:
        for entry, last in _SUBLAYERS[kind]:
            layer = name.removesuffix(f".{last}")
            # a numbered part: heads and poolers have layers of such names too
            if layer != name and f"{layer}.{entry}" in modules and any(part.isdigit() for part in layer.split(".")):
                yield Place(kind, layer, f"{layer}.{entry}", name, _width(modules[name]))


def _width(module: Any) -> int:
    return int(module.out_features if hasattr(module, "out_features") else module.nf)
