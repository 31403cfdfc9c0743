"""`Conditional`: the hypernetwork of CA-MTL, which is trained on all tasks, and what it gives for one task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tangora.modular.ca_mtl.hooks import Conditions
from tangora.modular.ca_mtl.parts import Bottleneck, Film, film, linear

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.modular.ca_mtl.encoder import Encoder
    from tangora.modular.ca_mtl.parts import Parts

__all__ = ["Conditional"]


class Conditional(Conditions):
    """Values of each part as functions of the task's embedding e, and of ``z = W e + b``.

    Embeddings, projections and FiLM weights begin at draws of N(0, 0.02²), the matrices of the attention at 0.

    Args:
        parts: what there is.
        tasks: number of tasks.
    """

    def __init__(self, parts: Parts, tasks: int) -> None:
        super().__init__(parts)
        d = parts.width
        self.tasks = nn.Embedding(tasks, d)
        nn.init.normal_(self.tasks.weight, std=0.02)
        if parts.attention or parts.norms or parts.bottleneck:
            self.transform = linear(d, d)
        if parts.alignment:
            self.alignment = Film(d, parts.embedded)
        if parts.attention:
            blocks = (torch.zeros(parts.length, parts.side) for _ in range(parts.layers))
            self.matrices = nn.ParameterList(nn.Parameter(value) for value in blocks)
            self.attention = nn.ModuleList(Film(d, parts.side) for _ in range(parts.layers))
        self.norms = nn.ModuleDict({name: Film(d, d) for name in parts.normed})
        self.bottlenecks = nn.ModuleDict({str(layer): Bottleneck(d, task=False) for layer in parts.squeezed})
        if parts.has_top_norm:
            self.top_norm, self.top_film = nn.LayerNorm(d), Film(d, d)

    def baked(self, task: int, encoder: Encoder) -> dict[str, Tensor]:
        """Return a task's values, by the names that `tangora.modular.ca_mtl.baked.Baked` has for them.

        Args:
            task: its number.
            encoder: with the weights beside which the network was trained.
        """
        before, self.task = self.task, task
        try:
            with torch.no_grad():
                return {name: value.detach().clone() for name, value in self._values(encoder)}
        finally:
            self.task = before

    def _values(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        if self.parts.alignment:
            yield from zip(("alignment.scale", "alignment.shift"), self.alignment_values(), strict=True)
        for layer in range(self.parts.layers) if self.parts.attention else ():
            yield f"attention.{layer}", self.bias(layer)
        for name in self.parts.normed:
            weight = encoder.norms(int(name.partition("_")[0]))[name.partition("_")[2]].weight
            yield f"norms.{name}", self.norm_weight(name, weight) - weight
        for layer in self.parts.squeezed:
            part = self._bottleneck(layer)
            yield from zip(
                (f"bottlenecks.{layer}.scale", f"bottlenecks.{layer}.shift"), part.values(self._z()), strict=True
            )
            for name, value in part.named_parameters():
                if name.startswith(("down.", "up.")):
                    yield f"bottlenecks.{layer}.{name}", value
        if self.parts.has_top_norm:
            yield from zip(("top_norm.weight", "top_norm.bias"), self.top_norm_values(), strict=True)

    def alignment_values(self) -> tuple[Tensor, Tensor]:
        """Return γ and β of the embeddings; as in the released code, from e itself."""
        values: tuple[Tensor, Tensor] = self.alignment(self._e())
        return values

    def bias(self, layer: int) -> Float[Tensor, "length side"]:
        """Return ``FiLM_z(M)`` over the columns of M."""
        return film(self.matrices[layer], *self.attention[layer](self._z()))

    def norm_weight(self, name: str, weight: Tensor) -> Tensor:
        """Return ``FiLM_z(weight)``."""
        return film(weight, *self.norms[name](self._z()))

    def squeezed(self, layer: int, hidden: Tensor) -> Tensor:
        """Return ``up(down(FiLM_z(h)))``."""
        part = self._bottleneck(layer)
        out: Tensor = part(hidden, *part.values(self._z()))
        return out

    def top_norm_values(self) -> tuple[Tensor, Tensor]:
        """Return ``FiLM_z(weight)``, and the bias."""
        return film(self.top_norm.weight, *self.top_film(self._z())), self.top_norm.bias

    def _bottleneck(self, layer: int) -> Bottleneck:
        return cast(Bottleneck, self.bottlenecks[str(layer)])

    def _e(self) -> Tensor:
        return self.tasks.weight[self.task]

    def _z(self) -> Tensor:
        out: Tensor = self.transform(self._e())
        return out
