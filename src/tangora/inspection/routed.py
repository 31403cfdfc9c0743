"""Describe a routed adapter: its router, its experts, and where its numbers are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tangora.adapters.metadata import Metadata

__all__ = ["RoutedSummary", "routed_summary"]


@dataclass(frozen=True)
class RoutedSummary:
    """What a routed adapter consists of.

    Attributes:
        router: the router that made it, or the mode that trained it.
        settings: of the router.
        experts: their names.
        sites: number of layers with experts.
        ranks: the smallest and the largest rank of an expert at a site.
        gates: kind of gate -> how many there are.
        numbers: of experts, gates, and fixed updates.
    """

    router: str
    settings: Mapping[str, Any]
    experts: Sequence[str]
    sites: int
    ranks: tuple[int, int]
    gates: Mapping[str, int]
    numbers: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as JSON values."""
        return {**vars(self), "experts": list(self.experts), "ranks": list(self.ranks)}

    def lines(self) -> Iterator[str]:
        """Yield the description, line by line."""
        low, high = self.ranks
        ranks = f"rank {low}" if low == high else f"rank {low} to {high}"
        yield f"{len(self.experts)} experts of {ranks} beside {self.sites} layers: {', '.join(self.experts)}"
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items() if value is not None)
        yield f"router: {self.router}" + (f" ({settings})" if settings else "")
        parts = ", ".join(f"{part} {count:,}" for part, count in self.numbers.items() if count)
        yield f"numbers: {parts}"


def routed_summary(about: Metadata, shapes: Mapping[str, Sequence[int]]) -> RoutedSummary | None:
    """Return the description of a routed adapter; None if it is none, or its settings are not those of experts.

    Args:
        about: its metadata.
        shapes: tensor -> shape.
    """
    modules = about.modules or {}
    sites, experts = modules.get("sites"), modules.get("experts")
    if about.kind != "routed" or not isinstance(sites, dict) or not isinstance(experts, list):
        return None
    ranks = [rank for site in sites.values() for rank in site["ranks"] if rank]
    kinds = [str(gate["kind"]) for gate in modules.get("gates", {}).values()]
    numbers = dict.fromkeys(("experts", "gates", "fixed"), 0)
    for name, shape in shapes.items():
        part = name.partition(".")[0].replace("sites", "experts")
        numbers[part] = numbers.get(part, 0) + math.prod(shape)
    fused = about.fused
    return RoutedSummary(
        router=about.train if fused is None else fused.method,
        settings={} if fused is None else fused.parameters,
        experts=[str(name) for name in experts],
        sites=len(sites),
        ranks=(min(ranks, default=0), max(ranks, default=0)),
        gates={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        numbers=numbers,
    )
