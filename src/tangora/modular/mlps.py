"""Find the MLPs of a transformer: the blocks whose experts WEMoE weighs, each by one gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from tangora.errors import ModelError

__all__ = ["MLPS", "MlpBlock", "mlps_of"]

MLPS = "mlp|DenseReluDense|feed_forward|intermediate+output|fc1+fc2|linear1+linear2|ffn+ffn_output|ffn"
"""The MLPs of transformers' classes, by the names of a layer's children; see `mlps_of`."""


@dataclass(frozen=True)
class MlpBlock:
    """The MLP of a transformer's layer.

    Attributes:
        name: the module whose input is that of the block.
        layers: its linear layers, in the order of their definition.
        width: of its input.
        causal: whether the layer's attention sees no later token, so that a mean over the tokens would read the future.
    """

    name: str
    layers: tuple[str, ...]
    width: int
    causal: bool


def mlps_of(backbone: nn.Module, pattern: str | None = None) -> list[MlpBlock]:
    """Return the MLPs of a model, in the order of the layers.

    Args:
        backbone: a transformer.
        pattern: names of children of a layer: ``mlp``; ``fc1+fc2`` for children that are a block together, the first
            of which gets its input; alternatives are separated by ``|``. By default `MLPS`.

    Raises:
        ModelError: nothing matches.

    >>> layer = nn.ModuleDict({"norm": nn.LayerNorm(4), "fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})
    >>> [(block.name, block.layers, block.width) for block in mlps_of(nn.Sequential(layer))]
    [('0.fc1', ('0.fc1', '0.fc2'), 4)]
    """
    groups = [tuple(filter(None, group.split("+"))) for group in (pattern or MLPS).split("|")]
    found: list[MlpBlock] = []
    inside: list[str] = []
    for name, module in backbone.named_modules():
        for group in filter(None, groups):
            members = [f"{name}.{child}".lstrip(".") for child in group]
            if any(_is_in(member, inside) for member in members) or not all(
                child in module._modules for child in group
            ):
                continue
            if (block := _block(backbone, members)) is not None:
                found.append(block)
                inside += members
    if not found:
        fix = "name the children of a layer that are its MLP, such as blocks=mlp, or blocks=fc1+fc2"
        got = type(backbone).__name__ if pattern is None else pattern
        raise ModelError("no MLP was found in the model", got=got, where="route.blocks", fix=fix)
    return found


def _block(backbone: nn.Module, members: list[str]) -> MlpBlock | None:
    """Return the block of some modules; None if the first one is never called, or has no linear layer of its own."""
    if isinstance(backbone.get_submodule(members[0]), nn.ModuleList | nn.ModuleDict):
        return None
    layers = [name for member in members for name in _linear_layers(backbone, member)]
    if not layers or not _is_in(layers[0], members[:1]):
        return None
    width = _inputs(backbone.get_submodule(layers[0]))
    return MlpBlock(members[0], tuple(layers), width, _is_causal(backbone, members[0]))


def _linear_layers(backbone: nn.Module, name: str) -> Iterator[str]:
    for inner, module in backbone.get_submodule(name).named_modules(prefix=name):
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            yield inner


def _inputs(layer: Any) -> int:
    """Return the width of a layer's input; Conv1D of transformers is a linear layer with its own names."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.nx)


def _is_in(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _is_causal(backbone: nn.Module, name: str) -> bool:
    """Return whether the attention nearest to a block is causal.

    transformers' attention modules say so by ``is_causal``. In a decoder that attends to an encoder, one of two does.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        around = backbone.get_submodule(".".join(parts[:end]))
        flags = [module.is_causal for module in around.modules() if hasattr(module, "is_causal")]
        if flags:
            return any(flags)
    config: Any = getattr(backbone, "config", None)
    kind = type(backbone).__name__
    return bool(getattr(config, "is_decoder", False)) or kind.endswith(("ForCausalLM", "LMHeadModel"))
