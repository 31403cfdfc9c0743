"""The modules: a bottleneck adapter, the generator of such adapters, and the retriever that encodes rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.config.pha import PrototypeSizes

__all__ = ["Bottleneck", "Generated", "Generator", "Retriever"]


class Bottleneck(nn.Module):
    """A bottleneck adapter: ``W_up ReLU(W_down x + b_down) + b_up``; nearly zero at first.

    Args:
        width: of x.
        inner: of the bottleneck.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight, gain=1e-4)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return what is added to the output of the feed-forward layer."""
        added: Tensor = self.up(torch.relu(self.down(x)))
        return added


@dataclass(frozen=True)
class Generated:
    """The weights of a bottleneck adapter; with leading dimensions, of one adapter per row.

    Attributes:
        down: [*rows, width, inner].
        down_bias: [*rows, inner].
        up: [*rows, inner, width].
        up_bias: [*rows, width].
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def of(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """Return the adapter's output: of one adapter for all rows, or of one for each."""
        inner = torch.relu(x @ self.down + self.down_bias.unsqueeze(-2))
        return inner @ self.up + self.up_bias.unsqueeze(-2)

    def tensors(self) -> dict[str, Tensor]:
        """Return the same adapter as the ``state_dict`` of a `Bottleneck`."""
        return {
            "down.weight": self.down.mT,
            "down.bias": self.down_bias,
            "up.weight": self.up.mT,
            "up.bias": self.up_bias,
        }


class Generator(nn.Module):
    """Generates the adapter of a layer from the prototype of a task (arXiv:2310.11670, §3.2).

    ``g = LN(Linear(ReLU(Linear([k; e_layer]))))``; each tensor of the adapter is a linear function of g. There is one
    generator for all layers and tasks. The heads' weights are so small at first that adapters are nearly zero:
    uniform up to ``1e-3 √(3 / (code · fan))`` for a matrix with ``fan`` inputs, ``1e-3 √(3 / code)`` for a bias.

    Args:
        width: of the hidden states.
        layers: number of layers with a generated adapter.
        sizes: of the parts.
    """

    def __init__(self, width: int, layers: int, sizes: PrototypeSizes) -> None:
        super().__init__()
        self.shape = (width, sizes.bottleneck)
        self.layers = nn.Embedding(layers, sizes.layer)
        self.encoder = nn.Sequential(
            nn.Linear(sizes.prototype + sizes.layer, sizes.hidden),
            nn.ReLU(),
            nn.Linear(sizes.hidden, sizes.code),
            nn.LayerNorm(sizes.code, eps=1e-6),
        )
        inner = sizes.bottleneck
        self.down = _head(sizes.code, width * inner, fan=width)
        self.up = _head(sizes.code, inner * width, fan=inner)
        self.down_bias, self.up_bias = _head(sizes.code, inner), _head(sizes.code, width)

    def forward(self, prototype: Float[Tensor, "*rows prototype"], layer: int) -> Generated:
        """Return the adapter of a layer: one, or one for each row's prototype."""
        embedded = self.layers.weight[layer].expand(*prototype.shape[:-1], -1)
        code = self.encoder(torch.cat([prototype, embedded], -1))
        width, inner = self.shape
        down = self.down(code).unflatten(-1, (width, inner))
        up = self.up(code).unflatten(-1, (inner, width))
        return Generated(down, self.down_bias(code), up, self.up_bias(code))


def _head(code: int, outputs: int, fan: int = 1) -> nn.Linear:
    head = nn.Linear(code, outputs)
    bound = 1e-3 * math.sqrt(3 / (code * fan))
    nn.init.uniform_(head.weight, -bound, bound)
    nn.init.zeros_(head.bias)
    return head


class Retriever(nn.Module):
    """Encodes rows in the space of the prototypes: ``z = Linear(ReLU(Linear(mean over tokens of h)))``.

    Args:
        width: of the hidden states.
        sizes: of the parts.
    """

    def __init__(self, width: int, sizes: PrototypeSizes) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, sizes.hidden), nn.ReLU(), nn.Linear(sizes.hidden, sizes.prototype))

    def forward(self, pooled: Float[Tensor, "rows width"]) -> Float[Tensor, "rows prototype"]:
        """Return the encodings of rows, not normalized."""
        encoded: Tensor = self.layers(pooled)
        return encoded
