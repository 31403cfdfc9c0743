"""Describe a routed adapter: its router, its experts, and where its numbers are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tangora.adapters.metadata import Metadata

__all__ = ["RoutedSummary", "routed_summary"]

_PARTS = {"a": "down-vectors", "b": "up-vectors", "router": "routers"}


@dataclass(frozen=True)
class RoutedSummary:
    """What a routed adapter consists of.

    Attributes:
        router: the router that made it, or the mode that trained it.
        settings: of the router.
        what: the experts in words.
        sites: number of layers with experts.
        ranks: the smallest and the largest rank of an expert at a site.
        numbers: part -> how many numbers it has.
        experts: their names, if they were adapters of their own.
        gates: kind of gate -> how many there are.
    """

    router: str
    settings: Mapping[str, Any]
    what: str
    sites: int
    ranks: tuple[int, int]
    numbers: Mapping[str, int]
    experts: Sequence[str] = ()
    gates: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as JSON values."""
        return {**vars(self), "experts": list(self.experts), "ranks": list(self.ranks)}

    def lines(self) -> Iterator[str]:
        """Yield the description, line by line."""
        names = f": {', '.join(self.experts)}" if self.experts else ""
        yield f"{self.what} beside {self.sites} layers{names}"
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items() if value is not None)
        yield f"router: {self.router}" + (f" ({settings})" if settings else "")
        yield "numbers: " + ", ".join(f"{part} {count:,}" for part, count in self.numbers.items() if count)


def routed_summary(about: Metadata, shapes: Mapping[str, Sequence[int]]) -> RoutedSummary | None:
    """Return the description of a routed adapter; None if it is none, or of another package's mode.

    Args:
        about: its metadata.
        shapes: tensor -> shape.
    """
    modules = about.modules or {}
    if not about.of_kind.routed or not isinstance(modules.get("sites"), dict):
        return None
    if isinstance(modules.get("experts"), list):
        return _of_experts(about, modules, shapes)
    return _of_dyads(about, modules, shapes) if "ups" in modules else None


def _of_experts(about: Metadata, modules: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> RoutedSummary:
    """Describe what a router made."""
    experts, fused = [str(name) for name in modules["experts"]], about.fused
    ranks = [rank for site in modules["sites"].values() for rank in site.get("ranks", ()) if rank]
    low, high = min(ranks, default=0), max(ranks, default=0)
    kinds = [str(gate.get("kind")) for gate in modules.get("gates", {}).values()]
    count = f"{len(experts)} expert{'s' if len(experts) > 1 else ''}"
    return RoutedSummary(
        router=about.train if fused is None else fused.method,
        settings={} if fused is None else fused.parameters,
        what=f"{count} of rank {low}" if low == high else f"{count} of rank {low} to {high}",
        sites=len(modules["sites"]),
        ranks=(low, high),
        numbers=_counted({n: n.partition(".")[0].replace("sites", "experts") for n in shapes}, shapes),
        experts=experts,
        gates={kind: kinds.count(kind) for kind in sorted(set(kinds))},
    )


def _of_dyads(about: Metadata, modules: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> RoutedSummary:
    """Describe what the mode ``dyadic`` trained."""
    r, ups = modules.get("r"), modules.get("ups")
    return RoutedSummary(
        router=about.train,
        settings={key: modules.get(key) for key in ("router", "decisions")},
        what=f"{ups} up-vectors for each of {r} ranks",
        sites=len(modules["sites"]),
        ranks=(int(r or 0), int(r or 0)),
        numbers=_counted({n: _PARTS.get(n.rpartition(".")[2], "others") for n in shapes}, shapes),
    )


def _counted(parts: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return part -> numbers."""
    counts = dict.fromkeys(sorted(set(parts.values())), 0)
    for name, part in parts.items():
        counts[part] += math.prod(shapes[name])
    return counts
