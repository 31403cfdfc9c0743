"""The experts that an input activates most: softmax over the lengths of its products with their A."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from tangora.config.routing import TopSettings
from tangora.routing.contract import RouteSettings, RoutingBench

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter


class ActivatedSettings(TopSettings):
    """What a recipe may say beside ``method: activated``."""

    name: Literal["activated"] = "activated"


class Activated:
    """Weigh experts by the length of ``A x``, token by token.

    Choose it as an example: unlike SMILE it depends on how an update is factored.
    """

    name = "activated"
    settings: type[RouteSettings] = ActivatedSettings
    needs: Literal["nothing", "rows"] = "nothing"
    reference = "none"

    def __call__(
        self, experts: Mapping[str, Adapter], settings: ActivatedSettings, bench: RoutingBench | None = None
    ) -> Adapter:
        """Put a gate with all rows of A beside every layer."""
        import torch  # deferred: recipes are read without it

        from tangora.modular.gates import ProjectionGate, ProjectionSettings
        from tangora.routing.assembly import Routed, expert_sites, routed_adapter

        sites, gates = {}, {}
        for site, updates in expert_sites(experts).items():
            ranks = [0 if update is None else update.rank for update in updates]
            rows = torch.cat([update.a for update in updates if update is not None])
            gates[site] = ProjectionGate(ProjectionSettings(width=rows.shape[1], ranks=ranks, top_k=settings.top_k))
            gates[site].load_state_dict({"directions": rows})
            sites[site] = Routed(updates, site)
        return routed_adapter(experts, settings, sites, gates)


ROUTER = Activated()
