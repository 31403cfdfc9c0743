"""Adapters made on the spot, for tests: by stock peft, and from nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.updates.task_vector import LowRank


class Toy(nn.Module):
    """An embedding, two linear layers of unlike widths, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"model_type": "toy"}
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).mean(1)
        return self.head(x + self.down(torch.tanh(self.up(x))))


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


def trained(model: nn.Module, config: Any, seed: int = 1) -> Any:
    """A PeftModel whose factors are random, as if it had been trained."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return wrapped.eval()


def layers(wrapped: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora.layer import LoraLayer

    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def lora(
    seed: int,
    rank: int = 2,
    *,
    scaling: float = 2.0,
    shared_a: bool = False,
    initial: bool = True,
    shapes: dict[str, tuple[int, int]] | None = None,
    **metadata: Any,
) -> Adapter:
    """A plain LoRA adapter of B₀ = 0; A₀ is the same for every seed."""
    shapes = shapes or {"up": (10, 6), "down": (6, 10)}
    start, moved = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    updates, begin = {}, {}
    for site, (out, inside) in shapes.items():
        a = torch.randn(rank, inside, generator=start)
        b = torch.randn(out, rank, generator=moved)
        begin[site] = LowRank(torch.zeros(out, rank), a, scaling)
        moved_a = a if shared_a else a + 0.3 * torch.randn(rank, inside, generator=moved)
        updates[site] = LowRank(b, moved_a, scaling)
    about = {"task": f"task{seed}", "base": BaseInfo(model="toy"), **metadata}
    return Adapter(updates, Metadata(**about), LoraDetails(initial=begin if initial else None))
