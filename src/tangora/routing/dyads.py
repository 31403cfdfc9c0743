"""Put experts of one A₀ together as up-vectors of a network that chooses among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from tangora.errors import FusionError
from tangora.modular.dyadic import DyadicNetwork, DyadicShape, draw_
from tangora.routing.assembly import expert_sites

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.routing.routers.dyadic_experts import DyadicExpertsSettings
    from tangora.updates.task_vector import LowRank

__all__ = ["dyads_of"]

_WHERE = "fuse.adapters"


def dyads_of(experts: Mapping[str, Adapter], settings: DyadicExpertsSettings, seed: int) -> DyadicNetwork:
    """Return the network of experts, with routers as they are drawn.

    Scalings are part of B, as they may differ from site to site. An expert without a site has zeros there.

    Raises:
        FusionError: two experts have different A at a site; ranks differ; they began at a start that is not zero; or
            ``block`` does not divide the rank.
    """
    if odd := [name for name, adapter in experts.items() if adapter.start]:
        fix = "train with train: l-lora, whose B₀ is 0"
        raise FusionError("up-vectors are trained from zero, and B₀A₀ is not", got=odd[0], where=_WHERE, fix=fix)
    sites = expert_sites(experts)
    first = {site: _one_a(site, updates, list(experts)) for site, updates in sites.items()}
    rank = next(iter(first.values())).rank
    if other := [site for site, update in first.items() if update.rank != rank]:
        got = f"{first[other[0]].rank} at {other[0]}, {rank} elsewhere"
        raise FusionError("every site must have one rank", got=got, where=_WHERE, fix="leave rank_pattern out")
    if rank % settings.block:
        fix = f"choose a divisor of {rank}"
        raise FusionError("block must divide the rank", got=settings.block, where="route.block", fix=fix)
    shape = DyadicShape(
        r=rank,
        ups=len(experts),
        decisions=1 if settings.router == "shared" else rank // settings.block,
        router=settings.router,
        scaling=settings.scale,
        sites={site: list(update.shape) for site, update in first.items()},
    )
    network = draw_(DyadicNetwork(shape), seed)
    for site, updates in sites.items():
        _fill(network, site, updates)
    return network.requires_grad_(False)


def _one_a(site: str, updates: Sequence[LowRank | None], names: Sequence[str]) -> LowRank:
    """Return the first expert's update of a site; refuse others with another A."""
    given = [(name, update) for name, update in zip(names, updates, strict=True) if update is not None]
    (first, one), *others = given
    for name, other in others:
        if one.a.shape != other.a.shape or not torch.equal(one.a, other.a):
            fix = "train them with train: l-lora and a_init: shared; or route them by wemoe, smile or arrow"
            raise FusionError(
                f"{first} and {name} have different A, so their up-vectors share no direction", where=site, fix=fix
            )
    return one


@torch.no_grad()
def _fill(network: DyadicNetwork, site: str, updates: Sequence[LowRank | None]) -> None:
    dyads = network.sites.at(site)
    for i, update in enumerate(updates):
        if update is not None:
            dyads.a.copy_(update.a)
            dyads.b[:, i] = update.b * update.scaling
