"""`Baked`: what CA-MTL adds to an encoder for one task, as plain vectors and matrices, without the hypernetwork."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tangora.modular.ca_mtl.encoder import encoder_of
from tangora.modular.ca_mtl.hooks import Change, Conditions
from tangora.modular.ca_mtl.parts import Bottleneck

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from tangora.modular.ca_mtl.parts import Parts

__all__ = ["CHANGES", "Baked"]

CHANGES = "changes."
"""The prefix of changes of the encoder's own weights; a parameter's name follows."""


class _Affine(nn.Module):
    """γ and β."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))


class Baked(Conditions):
    """The values of one task.

    ``alignment.scale`` and ``shift`` [width of embeddings]; ``attention.<layer>`` [L, c]; ``norms.<layer>_<place>``
    [d], what is added to a norm's weight; ``bottlenecks.<layer>`` with the task's ``scale`` and ``shift`` [d];
    ``top_norm``; and ``changes.<parameter>``, what is added to the encoder's own weights.

    Args:
        parts: what there is.
        changed: name in the backbone -> shape, of each weight that is changed.
    """

    def __init__(self, parts: Parts, changed: Mapping[str, torch.Size]) -> None:
        super().__init__(parts)
        d = parts.width
        if parts.alignment:
            self.alignment = _Affine(parts.embedded)
        blocks = (torch.zeros(parts.length, parts.side) for _ in range(parts.layers if parts.attention else 0))
        self.attention = nn.ParameterList(nn.Parameter(value) for value in blocks)
        self.norms = nn.ParameterDict({name: nn.Parameter(torch.zeros(d)) for name in parts.normed})
        self.bottlenecks = nn.ModuleDict({str(layer): Bottleneck(d, task=True) for layer in parts.squeezed})
        if parts.has_top_norm:
            self.top_norm = nn.LayerNorm(d)
        self.changes = nn.Module()
        for name, shape in changed.items():
            _put(self.changes, name, nn.Parameter(torch.zeros(shape)))

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Register the hooks, and add the changes of weights; see `Network.connect`.

        Raises:
            ModelError: as `Conditions.connect`; or changed weights are not held in float32.
        """
        yield from super().connect(backbone)
        weights = encoder_of(backbone).weights(self.parts.changed)
        changes = {name: value.detach() for name, value in self.changes.named_parameters()}
        if changes:
            yield cast("RemovableHandle", Change(weights, changes))

    def alignment_values(self) -> tuple[Tensor, Tensor]:
        """Return γ and β of the embeddings."""
        return self.alignment.scale, self.alignment.shift

    def bias(self, layer: int) -> Tensor:
        """Return the blocks of a layer's attention bias."""
        return cast(Tensor, self.attention[layer])

    def norm_weight(self, name: str, weight: Tensor) -> Tensor:
        """Return the weight with the task's change."""
        return weight + cast(Tensor, self.norms[name])

    def squeezed(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the bottleneck with the task's γ and β."""
        part = cast(Bottleneck, self.bottlenecks[str(layer)])
        out: Tensor = part(hidden, part.scale, part.shift)
        return out

    def top_norm_values(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias."""
        return self.top_norm.weight, self.top_norm.bias


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter at a dotted name, with modules on the way to it."""
    *path, last = name.split(".")
    for child in path:
        if child not in dict(root.named_children()):
            root.add_module(child, nn.Module())
        root = root.get_submodule(child)
    root.register_parameter(last, parameter)
