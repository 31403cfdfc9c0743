"""Arrow (arXiv:2405.11157): the experts whose strongest input direction is most like an input, without data."""

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

__all__ = ["ROUTER", "Arrow", "ArrowSettings"]


class ArrowSettings(TopSettings):
    """Settings of `Arrow`; the defaults are those of peft."""

    name: Literal["arrow"] = "arrow"
    top_k: int = Field(default=3, ge=1, description="experts that answer for a token; all of them if there are fewer")
    temperature: float = Field(default=1.0, gt=0, description="divides the scores before the softmax")


class Arrow:
    """Weigh experts by an input's product with the direction that each amplifies most, token by token.

    The prototype vₜ of an expert at a site is the right singular vector of ``BₜAₜ`` with the largest singular value.
    The weights are the softmax over the ``top_k`` largest ``|x · vₜ|``, divided by ``temperature``
    (arXiv:2405.11157, section 3.2).

    Choose it for many experts of unknown tasks, to combine a few of them for every token.

    An expert without a site has the score 0 and adds nothing there. peft finds prototypes by 15 steps of a power
    iteration; here they are exact, so that the two differ if the two largest singular values are close. Experts may
    have different ranks and sites, which peft refuses.
    """

    name = "arrow"
    settings: type[RouteSettings] = ArrowSettings
    needs: Literal["nothing", "rows"] = "nothing"
    reference = "arXiv:2405.11157"

    def directions(self, settings: ArrowSettings) -> int:
        """Return how many input directions of an expert are compared; see `tangora.routing.contract.Router`."""
        return 1

    def __call__(
        self, experts: Mapping[str, Adapter], settings: ArrowSettings, bench: RoutingBench | None = None
    ) -> Adapter:
        """Return the routed adapter; see `tangora.routing.contract.Router`."""
        from tangora.routing.assembly import Routed, expert_sites, routed_adapter  # deferred: torch

        sites = expert_sites(experts)
        gates = {site: _gate(site, list(experts), updates, settings) for site, updates in sites.items()}
        return routed_adapter(experts, settings, {site: Routed(u, site) for site, u in sites.items()}, gates)


def _gate(site: str, names: Sequence[str], updates: Sequence[LowRank | None], settings: ArrowSettings) -> Gate:
    """Return the gate of a site."""
    import torch  # deferred: the settings of a recipe need none

    from tangora.modular.gates import PrototypeGate, PrototypeSettings  # deferred: torch
    from tangora.routing.directions import leading_directions, refuse_alike

    width = next(u.shape[1] for u in updates if u is not None)
    directions = [leading_directions(update, 1, width) for update in updates]
    if settings.top_k < len(updates):
        fix = "route them by dyadic-experts or wemoe, or train with a rank above 1"
        refuse_alike(site, names, directions, fix)
    prototypes = torch.zeros(len(updates), width)
    for row, found in zip(prototypes, directions, strict=True):
        row.copy_(found.sum(0))  # of one direction, or of none
    made = PrototypeSettings(width=width, experts=len(updates), top_k=settings.top_k, temperature=settings.temperature)
    gate = PrototypeGate(made)
    gate.load_state_dict({"prototypes": prototypes})
    return gate


ROUTER = Arrow()
