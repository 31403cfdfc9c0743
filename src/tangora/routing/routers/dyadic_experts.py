"""MoDE from experts (arXiv:2408.01505): L-LoRA experts of one A₀ as up-vectors, among which every token chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.config.dyadic import RouterInput
from tangora.config.learning import LearnedSettings
from tangora.routing.contract import RouteSettings, RoutingBench

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["ROUTER", "DyadicExperts", "DyadicExpertsSettings"]


class DyadicExpertsSettings(LearnedSettings):
    """Settings of `DyadicExperts`."""

    name: Literal["dyadic-experts"] = "dyadic-experts"
    router: RouterInput = Field(
        default="input",
        description="reads the input; one decision for all ranks; or reads only the r products with A",
    )
    block: int = Field(default=1, ge=1, description="ranks that are decided together; it divides the experts' rank")
    scale: float = Field(
        default=1.0, gt=0, description="of all updates: 1 begins at the mean of the experts, their number at the sum"
    )


class DyadicExperts:
    """Choose, for every token and rank, among the up-vectors of L-LoRA experts that share A₀.

    With ``ΔWₜ = s Bₜ A₀``, column j of Bₜ is an expert of rank one of the direction ``a_j``:
    ``y = W x + s Σⱼ (aⱼ·x) Σₜ Rⱼₜ(x) b_{t,j}`` with ``Rⱼ(x) = softmax(W_{R,j} x)``, which is the mode ``dyadic``
    (MoDE, arXiv:2408.01505, section 3) with the experts as they are: only routers are trained.

    Choose it for ``l-lora`` experts if decisions should be for tokens and for each rank by itself.

    The routers begin at N(0, 0.01²), so that every token gets about the mean of the experts, times ``scale``. In the
    paper up-vectors and routers are trained together, with labels.
    """

    name = "dyadic-experts"
    settings: type[RouteSettings] = DyadicExpertsSettings
    needs: Literal["nothing", "rows"] = "rows"
    reference = "arXiv:2408.01505"
    linearized = True

    def __call__(
        self, experts: Mapping[str, Adapter], settings: DyadicExpertsSettings, bench: RoutingBench | None = None
    ) -> Adapter:
        """Return the routed adapter, of the mode ``dyadic``; see `tangora.routing.contract.Router`."""
        from tangora.routing.dyads import dyads_of  # deferred: torch
        from tangora.routing.learning import learned_adapter

        assert bench is not None
        network = dyads_of(experts, settings, bench.seed)
        shape = network.shape.model_dump(mode="json")
        return learned_adapter(network, experts, settings, bench, train="dyadic", modules=shape)


ROUTER = DyadicExperts()
