"""What is trained in one block: the factors of its layers, or a coefficient for every entry of every task vector.

    factors   W₀ + B A                     [out, r] and [r, in] for each layer
    entries   W + Σ_t M_t ∘ (W_t − W₀)     [T, *shape] for each parameter; W of the start, M_t zero at first

With the start ``W = W₀ + λ Σ_t (W_t − W₀)``, M + λ are the coefficients of ProDistill (arXiv:2502.12706), which start
at λ. From any other start they are offsets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import Slot, find_slots
from tangora.adapters.initial import seed_of
from tangora.polishing.blocks import Blocks, within
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    pass

__all__ = ["BlockStudent", "Entries", "Factors", "entries_of"]


class BlockStudent(Protocol):
    """The trained tensors of one block."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained tensors by names that are the same in every process."""

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters of the block that differ from the base's, with gradients; by their names in it."""


@dataclass
class Factors:
    """A and B of the layers of a block.

    Args:
        blocks: of the backbone.
        index: of the block.
        start: site -> factors, of layers in the block.
        rank: of every site. Rows of A that the start lacks are drawn, and their columns of B are zero.
        seed: of these draws.
        random: ignore the start's factors.
    """

    blocks: Blocks
    index: int
    start: Mapping[str, LowRank]
    rank: int
    seed: int
    random: bool = False
    a: dict[str, nn.Parameter] = field(init=False, default_factory=dict)
    b: dict[str, nn.Parameter] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Make the parameters."""
        backbone = self.blocks.backbone
        self._slots = find_slots(backbone, Adapter(dict(self.start)))
        self._parameters = dict(backbone.named_parameters(remove_duplicate=False))
        for site, update in self.start.items():
            place = self._parameters[self._slots[site].name]
            a, b = self._at_start(site, update)
            self.a[site] = nn.Parameter(a.to(place.device, torch.float32))
            self.b[site] = nn.Parameter(b.to(place.device, torch.float32))

    def _at_start(self, site: str, update: LowRank) -> tuple[Tensor, Tensor]:
        out, width = update.shape
        rank, kept = min(self.rank, out, width), 0 if self.random else min(self.rank, update.rank)
        generator = torch.Generator().manual_seed(seed_of("polish", self.seed, site))
        bound = 1 / math.sqrt(width)
        a = torch.empty(rank, width).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(out, rank)
        a[:kept], b[:, :kept] = update.a[:kept], update.b[:, :kept] * update.scaling
        return a, b

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return A and B of every site."""
        return {f"{site}.{name}": p[site] for site in self.a for name, p in (("a", self.a), ("b", self.b))}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the layers."""
        prefix = f"{self.blocks.names[self.index]}."
        made = {}
        for site, slot in self._slots.items():
            change = self.b[site] @ self.a[site]
            made[slot.name.removeprefix(prefix)] = _added(self._parameters[slot.name], slot, change)
        return made

    def updates(self) -> dict[str, LowRank]:
        """Return site -> its factors, on the CPU."""
        return {site: LowRank(self.b[site].detach().cpu(), self.a[site].detach().cpu()) for site in self.a}


@dataclass
class Entries:
    """A coefficient for every entry of the experts' changes of a block.

    Args:
        start: parameter -> its value in the start, by names in the block.
        base: parameter -> its value in the base.
        vectors: for each task, parameter -> what its expert changes; zero if it is missing.
    """

    start: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    vectors: Sequence[Mapping[str, Tensor]]
    offsets: dict[str, nn.Parameter] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Make the parameters, and stack the task vectors."""
        names = sorted({name for vector in self.vectors for name in vector})
        self._stacked = {
            name: torch.stack([vector.get(name, torch.zeros_like(self.base[name])) for vector in self.vectors])
            for name in names
        }
        self.offsets = {name: nn.Parameter(torch.zeros_like(stacked)) for name, stacked in self._stacked.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the coefficients of every parameter, for all tasks."""
        return dict(self.offsets)

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters of the block."""
        made = {
            name: self.start.get(name, self.base[name]) + (self.offsets[name] * stacked).sum(0)
            for name, stacked in self._stacked.items()
        }
        return {**self.start, **made}

    def changes(self) -> dict[str, Tensor]:
        """Return parameter -> its change of the base's value, by names in the block, on the CPU."""
        return {name: (value - self.base[name]).detach().cpu() for name, value in self.weights().items()}


def _added(weight: Tensor, slot: Slot, change: Tensor) -> Tensor:
    return weight.detach() + (change.T if slot.transposed else change).to(weight.dtype)


def entries_of(
    blocks: Blocks, index: int, start: Adapter, experts: Sequence[Mapping[str, Tensor]], *, matrices: bool
) -> Entries:
    """Return the coefficients of a block.

    Args:
        blocks: of the backbone.
        index: of the block.
        start: the adapter that is trained from, with the backbone's names.
        experts: for each task, the parameters of the block that its expert changes.
        matrices: leave out everything but matrices, since a rank can hold nothing else.
    """
    own = {name: p.detach() for name, p in blocks.block(index).named_parameters(remove_duplicate=False)}
    begun = blocks.weights(index, within(start, blocks.names[index]))
    kept = {name for name, p in own.items() if p.ndim == 2 or not matrices}
    vectors = [{n: value - own[n] for n, value in weights.items() if n in kept} for weights in experts]
    return Entries({n: value for n, value in begun.items() if n in kept}, own, vectors)
