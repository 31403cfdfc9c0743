"""`DyadicNetwork`: low-rank updates with several up-vectors for each rank, chosen token by token (MoDE).

    c = A x                                          [r]      shared down-projection
    g_k = softmax(W_k x)                             [m]      one decision for a block of p ranks
    y = W x + s Σ_j c_j Σ_i g_{k(j),i} b_{j,i}                 k(j): the block of rank j

(arXiv:2408.01505, section 3, with p = 1.) With m = 1 this is LoRA, with p = r MoLORA with a shared A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tangora.adapters.initial import seed_of
from tangora.config.dyadic import RouterInput
from tangora.config.settings import Frozen
from tangora.errors import AdapterError
from tangora.modular.network import Network
from tangora.modular.routed import Tree, layer_at
from tangora.storage.held import autocasts
from tangora.support.validation import validate

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["DyadicNetwork", "DyadicShape", "Dyads", "draw_", "dyadic_network"]

_DEVIATION = 0.01  # of A's entries in the paper; it gives none for the router


class DyadicShape(Frozen):
    """What a `DyadicNetwork` is made of, as ``modules`` in ``tangora.json``.

    ``sites`` maps a layer to ``[out, in]``; ``decisions`` is the number of routing vectors of a site.
    """

    r: int = Field(ge=1)
    ups: int = Field(ge=1)
    decisions: int = Field(ge=1)
    router: RouterInput
    scaling: float
    sites: dict[str, list[int]] = Field(min_length=1)


class Dyads(nn.Module):
    """The update of one site.

    Args:
        shape: of the network.
        out, inside: the widths of the layer.
        dropout: of the input of A, in training.
    """

    def __init__(self, shape: DyadicShape, out: int, inside: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.scaling, self.reads_core, self.dropout = shape.scaling, shape.router == "core", dropout
        self.a = nn.Parameter(torch.zeros(shape.r, inside))
        self.b = nn.Parameter(torch.zeros(out, shape.ups, shape.r))
        self.router: nn.Parameter | None = None
        if shape.ups > 1:  # the softmax of one number is 1
            read = shape.r if self.reads_core else inside
            self.router = nn.Parameter(torch.zeros(shape.decisions, shape.ups, read))

    def forward(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens out"]:
        """Return what is added to the layer's output."""
        x = x if autocasts(x.device) else x.to(self.a.dtype)
        inner = F.linear(F.dropout(x, self.dropout, self.training), self.a)
        if self.router is not None:
            weights = self.weights(inner if self.reads_core else x)
            inner = (weights.to(inner.dtype) * inner.unsqueeze(-2)).flatten(-2)
        added: Tensor = F.linear(inner, self.b.flatten(1)) * self.scaling
        return added

    def weights(self, x: Float[Tensor, "*tokens read"]) -> Float[Tensor, "*tokens ups r"]:
        """Return the weight of every up-vector of every rank; those of a rank sum to 1."""
        assert self.router is not None
        decisions, ups, _ = self.router.shape
        logits = F.linear(x, self.router.flatten(0, 1)).unflatten(-1, (decisions, ups))
        # half precision would be too coarse for a softmax
        weights: Tensor = logits.float().softmax(-1).repeat_interleave(len(self.a) // decisions, dim=-2)
        return weights.transpose(-1, -2)


class DyadicNetwork(Network):
    """Such updates beside the layers of a backbone.

    Args:
        shape: its layers and numbers.
        dropout: in training.
    """

    def __init__(self, shape: DyadicShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, self.sites = shape, Tree()
        for name, (out, inside) in shape.sites.items():
            self.sites.add(name, Dyads(shape, out, inside, dropout))

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Add a hook to every layer; see `Network.connect`."""
        yield from super().connect(backbone)
        for name, widths in self.shape.sites.items():
            layer, dyads = layer_at(backbone, name, widths), self.sites.at(name)
            dyads.to(next(layer.parameters()).device)  # those of a model may be several
            yield layer.register_forward_hook(partial(_added, dyads), with_kwargs=True)


def _added(dyads: Dyads, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], out: Tensor) -> Tensor:
    added: Tensor = dyads(inputs[0] if inputs else next(iter(named.values())))
    return out + added.to(out.dtype)


def draw_(network: DyadicNetwork, seed: int) -> DyadicNetwork:
    """Draw A and the routers from N(0, 0.01²), each by its own name, leave B at 0, and return the network."""
    for name in network.shape.sites:
        dyads = network.sites.at(name)
        for part in ("a", "router"):
            if (parameter := getattr(dyads, part)) is not None:
                generator = torch.Generator().manual_seed(seed_of("dyadic", seed, name, part))
                drawn = torch.randn(parameter.shape, generator=generator) * _DEVIATION
                parameter.data.copy_(drawn)
    return network


def dyadic_network(modules: Mapping[str, Any] | None) -> DyadicNetwork:
    """Return the network of an adapter, without the adapter's tensors.

    Args:
        modules: its settings in ``tangora.json``.

    Raises:
        AdapterError: they are missing or invalid.
    """
    shape = validate(DyadicShape, modules or {}, "modules in tangora.json", AdapterError)
    if shape.r % shape.decisions or not math.isfinite(shape.scaling) or any(len(s) != 2 for s in shape.sites.values()):
        fix = "copy the adapter's folder again"
        raise AdapterError("the settings of the modules contradict each other", where="tangora.json", fix=fix)
    return DyadicNetwork(shape)
