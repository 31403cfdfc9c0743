"""Put experts and gates together: `expert_sites` takes experts apart, `routed_adapter` makes the adapter.

experts ─ expert_sites ─▶ site -> an update of each expert ─ Routed, gates ─▶ network_of ─▶ adapter_from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.formats.lora.layers import expert_of, is_attention, is_bias
from tangora.adapters.metadata import FusedInfo, Parent
from tangora.config.routing import RouteSettings
from tangora.errors import FusionError
from tangora.fusion.heads import carried_heads, carried_records
from tangora.fusion.lineage import inherit
from tangora.modular.gates import Gate
from tangora.modular.routed import Bank, FixedSettings, RoutedNetwork, RoutedSettings, SiteSettings
from tangora.updates.task_vector import Dense, LowRank, Update

__all__ = ["Routed", "adapter_from", "expert_sites", "fill_bank", "network_of", "routed_adapter"]


@dataclass(frozen=True)
class Routed:
    """The experts of a site, and the gate that weighs them.

    Attributes:
        updates: of each expert, in their order; None for one that does not change the layer.
        gate: its name.
        at: the module whose input the gate reads; None for the site's own input.
    """

    updates: Sequence[LowRank | None]
    gate: str
    at: str | None = None

    @property
    def shape(self) -> list[int]:
        """``[out, in]``."""
        return list(next(u.shape for u in self.updates if u is not None))

    @property
    def ranks(self) -> list[int]:
        """The rank of each expert."""
        return [0 if update is None else update.rank for update in self.updates]


def expert_sites(experts: Mapping[str, Adapter]) -> dict[str, list[LowRank | None]]:
    """Return site -> the update of each expert, in memory; None for an expert without the site.

    Raises:
        FusionError: an update is no low-rank one of a linear layer.
    """
    sites = dict.fromkeys(site for adapter in experts.values() for site in adapter.updates)
    return {site: [_low_rank(site, name, adapter) for name, adapter in experts.items()] for site in sites}


def _low_rank(site: str, name: str, adapter: Adapter) -> LowRank | None:
    update = adapter.updates.get(site)
    if update is None:
        return None
    kinds = {
        "a bias": is_bias(site, update),
        "an embedding": site in adapter.embeddings,
        "a convolution": site in adapter.kernels,
        "of one matrix of several": expert_of(site) is not None or ".base_layer" in site,
        "inside an attention": is_attention(site, adapter.updates),
        "of full rank": update.factors() is None,
    }
    if odd := [kind for kind, found in kinds.items() if found]:
        fix = "give experts of linear layers only, or fuse them by a fusion method"
        raise FusionError(
            f"only low-rank updates of linear layers can be routed: {name}'s is {odd[0]}", where=site, fix=fix
        )
    factors = update.factors()
    assert factors is not None
    return LowRank(factors.b.float(), factors.a.float(), factors.scaling)


def network_of(
    experts: Sequence[str],
    sites: Mapping[str, Routed],
    gates: Mapping[str, Gate],
    fixed: Mapping[str, LowRank] | None = None,
) -> RoutedNetwork:
    """Return the network of experts and gates; its parameters are copies.

    Args:
        experts: their names.
        sites: site -> its experts. Scalings are multiplied into B.
        gates: name -> gate.
        fixed: site -> an update that is always added, such as a sum of experts with given coefficients.
    """
    always = fixed or {}
    settings = RoutedSettings(
        experts=list(experts),
        gates={name: gate.settings.model_dump(mode="json") for name, gate in gates.items()},
        sites={n: SiteSettings(shape=s.shape, ranks=s.ranks, gate=s.gate, at=s.at) for n, s in sites.items()},
        fixed={n: FixedSettings(shape=list(u.shape), rank=u.rank) for n, u in always.items()},
    )
    network = RoutedNetwork(settings)
    for name, site in sites.items():
        fill_bank(network.sites.at(name), [update for update in site.updates if update is not None])
    for name, update in always.items():
        fill_bank(network.fixed.at(name), [update])
    for name, gate in gates.items():
        network.gate(name).load_state_dict(gate.state_dict())
    return network.requires_grad_(False)


@torch.no_grad()
def fill_bank(bank: Bank, updates: Sequence[LowRank]) -> None:
    """Copy the factors of updates into a bank, one after the other; scalings are multiplied into B."""
    bank.a.copy_(torch.cat([update.a for update in updates]))
    bank.b.copy_(torch.cat([update.b * update.scaling for update in updates], 1))


def adapter_from(
    network: nn.Module,
    experts: Mapping[str, Adapter],
    settings: RouteSettings,
    *,
    modules: Mapping[str, Any],
    train: str = "routed",
    seed: int = 0,
) -> Adapter:
    """Return the adapter of a network, with the experts' heads and records.

    Args:
        network: its parameters are copied.
        experts: name -> adapter, as they were given to the router.
        settings: of the router; recorded.
        modules: what the network is made of, as JSON.
        train: the mode that answers with it.
        seed: of the router, if it draws anything.
    """
    tensors: dict[str, Tensor] = network.state_dict()
    updates: dict[str, Update] = {n: Dense(value.detach().float().cpu().clone()) for n, value in tensors.items()}
    parents = list(experts.values())
    fused = FusedInfo(
        method=settings.name,
        space="delta",
        parents=[Parent(name=n, task=a.metadata.task, fingerprint=a.fingerprint) for n, a in experts.items()],
        weights=[1.0] * len(parents),  # the experts are what they were
        parameters=settings.model_dump(mode="json", exclude={"name"}),
        seed=seed,
    )
    about = inherit(parents, {}, fused).metadata.model_copy(
        update={
            "kind": "routed",
            "train": train,
            "linearize": "none",
            "initial": None,
            "modules": dict(modules),
        }
    )
    return Adapter(updates, about, heads=carried_heads(parents), records=carried_records(parents))


def routed_adapter(
    experts: Mapping[str, Adapter],
    settings: RouteSettings,
    sites: Mapping[str, Routed],
    gates: Mapping[str, Gate],
    fixed: Mapping[str, LowRank] | None = None,
) -> Adapter:
    """Return the adapter of experts and gates that need no training; see `network_of` and `adapter_from`."""
    network = network_of(list(experts), sites, gates, fixed)
    return adapter_from(network, experts, settings, modules=network.settings.model_dump(mode="json"))
