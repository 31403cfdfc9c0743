"""What the modules of CA-MTL are made of: which parts there are and their sizes, and the arithmetic of each part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Bottleneck", "Film", "Parts", "biased", "block_diagonal", "film"]

_SPREAD = 0.02  # of all first values, as in BERT


@dataclass(frozen=True)
class Parts:
    """The parts of a conditioned encoder, and the sizes that they depend on.

    Attributes:
        layers: number n of layers.
        width: d, of hidden states.
        embedded: the width of embeddings.
        length: L, the largest number of tokens that the attention bias is for.
        large: a bottleneck after every layer, rather than after the top one.
        alignment, attention, norms, bottleneck: whether there is this part.
        changed: numbers of the layers whose own weights are trained.
    """

    layers: int
    width: int
    embedded: int
    length: int
    large: bool = False
    alignment: bool = True
    attention: bool = True
    norms: bool = True
    bottleneck: bool = True
    changed: Sequence[int] = ()

    @property
    def blocks(self) -> int:
        """N = d // L blocks; one if texts are longer than d.

        >>> Parts(12, 768, 768, 128).blocks, Parts(12, 768, 768, 128).side
        (6, 22)
        """
        return max(1, self.width // self.length)

    @property
    def side(self) -> int:
        """c = ⌈L / N⌉, the rows and columns of a block."""
        return math.ceil(self.length / self.blocks)

    @property
    def squeezed(self) -> list[int]:
        """The layers that a bottleneck follows."""
        if not self.bottleneck:
            return []
        return list(range(self.layers)) if self.large else [self.layers - 1]

    @property
    def normed(self) -> list[str]:
        """The norms that depend on the task, those of layers from n/2 on: ``<layer>_<place>``."""
        upper = range(math.ceil(self.layers / 2), self.layers) if self.norms else ()
        return [f"{layer}_{place}" for layer in upper for place in ("attention", "output")]

    @property
    def has_top_norm(self) -> bool:
        """Whether a new norm follows the bottleneck of the top layer."""
        return self.bottleneck and not self.large

    def to_json(self) -> dict[str, Any]:
        """Return what ``tangora.json`` keeps."""
        return {**asdict(self), "changed": list(self.changed)}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Parts:
        """Return the parts that `to_json` described."""
        return cls(**settings)


def film(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``(1 + γ) x + β``, feature by feature."""
    return (1 + scale) * x + shift


class Film(nn.Module):
    """Scale and shift by task, ``[γ; β] = W z + b`` (arXiv:2009.09139; FiLM, arXiv:1709.07871).

    W begins at draws of N(0, 0.02²), b at 0.

    Args:
        width: d, of z.
        features: w, of what is scaled and shifted.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.values = linear(width, 2 * features)

    def forward(self, z: Float[Tensor, " width"]) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
        """Return γ and β."""
        scale, shift = self.values(z).chunk(2, dim=-1)
        return scale, shift


class Bottleneck(nn.Module):
    """``up(down((1 + γ) x + β))`` with γ and β of a task: d → d/3 → d, without a non-linearity.

    Args:
        width: d.
        task: γ and β are those of one task, rather than a function of its z.
    """

    def __init__(self, width: int, *, task: bool) -> None:
        super().__init__()
        self.down, self.up = linear(width, width // 3), linear(width // 3, width)
        if task:
            self.scale, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        else:
            self.transform, self.film = linear(width, width), Film(width, width)

    def values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return γ and β of a task: FiLM of a linear function of z."""
        found: tuple[Tensor, Tensor] = self.film(self.transform(z))
        return found

    def forward(self, x: Float[Tensor, "*batch width"], scale: Tensor, shift: Tensor) -> Float[Tensor, "*batch width"]:
        """Return the output, to which nothing is added yet."""
        out: Tensor = self.up(self.down(film(x, scale, shift)))
        return out


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer that begins at draws of N(0, 0.02²), with a bias of 0."""
    made = nn.Linear(inputs, outputs)
    nn.init.normal_(made.weight, std=_SPREAD)
    nn.init.zeros_(made.bias)
    return made


def block_diagonal(x: Float[Tensor, "rows side"], length: int) -> Float[Tensor, "length length"]:
    """Return the first ``length`` rows of x as blocks on the diagonal: ``B[i, j] = x[i, j mod c]`` if ⌊i/c⌋ = ⌊j/c⌋.

    For fewer tokens than x has rows, that is the corner of the whole matrix.

    >>> block_diagonal(torch.tensor([[1, 2], [3, 4], [5, 6]]), 3)
    tensor([[1, 2, 0],
            [3, 4, 0],
            [0, 0, 5]])
    """
    blocks = x[:length].split(x.shape[1])
    whole: Tensor = torch.block_diag(*blocks)
    return whole[:, :length]


def biased(mask: Tensor | None, bias: Float[Tensor, "query key"]) -> Float[Tensor, "#batch 1 query key"]:
    """Return the mask of an attention with a bias added to the scores of all heads.

    Args:
        mask: None, of bool (True: attend), or what is added to the scores: as transformers passes it to sdpa or eager.
        bias: the same for each row.
    """
    if mask is None:
        return bias[None, None]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return mask + bias
