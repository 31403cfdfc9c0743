"""SMILE (arXiv:2408.10174): the experts whose input directions an input lies in, without data or training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.config.routing import TopSettings
from tangora.routing.contract import RouteSettings, RoutingBench

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.modular.gates import Gate
    from tangora.updates.task_vector import LowRank

__all__ = ["ROUTER", "Smile", "SmileSettings"]


class SmileSettings(TopSettings):
    """Settings of `Smile`."""

    name: Literal["smile"] = "smile"
    gate_rank: int = Field(default=4, ge=1, description="directions of each expert that the gate compares with")
    rank: int | None = Field(default=None, ge=1, description="truncate every expert to it; default: as it is")


class Smile:
    """Weigh experts by how much of an input lies in their leading input directions, token by token.

    With the singular value decomposition ``ΔWₜ = Uₜ Σₜ Vₜᵀ`` of an expert's update at a site, of rank r,
    ``rₜ = ‖V_{t,1:g}ᵀ x‖₂`` with g = min(``gate_rank``, r). The weights are the softmax over all rₜ, restricted to the
    ``top_k`` largest and divided by their sum (arXiv:2408.10174, section 4).

    Choose it to use experts of tasks that look different, without any rows; its decisions are the sharper, the larger
    the inputs of the layers are.

    An expert without a site has ``rₜ = 0`` and adds nothing there. Experts that share A, as ``l-lora`` trains them,
    have equal scores unless ``gate_rank`` is below their rank: they are refused. The paper's experts are models that
    were fine-tuned whole, so it also averages parameters that are no linear layer, and routes changes of biases; LoRA
    has neither. The released code fills up g with arbitrary directions if the rank of an update is smaller; here there
    are r of them.
    """

    name = "smile"
    settings: type[RouteSettings] = SmileSettings
    needs: Literal["nothing", "rows"] = "nothing"
    reference = "arXiv:2408.10174"

    def directions(self, settings: SmileSettings) -> int:
        """Return how many input directions of an expert are compared; see `tangora.routing.contract.Router`."""
        return settings.gate_rank

    def __call__(
        self, experts: Mapping[str, Adapter], settings: SmileSettings, bench: RoutingBench | None = None
    ) -> Adapter:
        """Return the routed adapter; see `tangora.routing.contract.Router`."""
        from tangora.routing.assembly import Routed, expert_sites, routed_adapter  # deferred: torch

        sites: dict[str, Routed] = {}
        gates: dict[str, Gate] = {}
        for site, updates in expert_sites(experts).items():
            kept = [None if u is None or settings.rank is None else _truncated(u, settings.rank) for u in updates]
            sites[site] = Routed(updates if settings.rank is None else kept, site)
            gates[site] = _gate(site, list(experts), updates, settings)
        return routed_adapter(experts, settings, sites, gates)


def _truncated(update: LowRank, rank: int) -> LowRank:
    factors = update.compress(rank)[0].factors()
    assert factors is not None
    return factors  # type: ignore[return-value]  # in memory, as the update is


def _gate(site: str, names: Sequence[str], updates: Sequence[LowRank | None], settings: SmileSettings) -> Gate:
    """Return the gate of a site."""
    import torch  # deferred: the settings of a recipe need none

    from tangora.modular.gates import ProjectionGate, ProjectionSettings  # deferred: torch
    from tangora.routing.directions import leading_directions, refuse_alike

    width = next(u.shape[1] for u in updates if u is not None)
    directions = [leading_directions(u, settings.gate_rank, width) for u in updates]
    if settings.top_k < len(updates):
        fix = "set gate_rank below the experts' rank, or route them by dyadic-experts or wemoe"
        refuse_alike(site, names, directions, fix)
    gate = ProjectionGate(ProjectionSettings(width=width, ranks=[len(d) for d in directions], top_k=settings.top_k))
    gate.load_state_dict({"directions": torch.cat(directions)})
    return gate


ROUTER = Smile()
