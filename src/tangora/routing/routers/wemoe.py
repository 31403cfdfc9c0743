"""WEMoE (arXiv:2402.00433): the experts' MLPs, weighed for every sample by a gate in each block that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.config.learning import LearnedSettings
from tangora.routing.contract import RouteSettings, RoutingBench

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["ROUTER", "BlockSettings", "Wemoe", "WemoeSettings"]


class BlockSettings(LearnedSettings):
    """Settings of routers that weigh the MLPs of blocks."""

    depth: Literal[0, 1, 2] = Field(default=2, description="linear layers of a gate; 0: a vector, for every input")
    initial: float = Field(default=0.3, description="weight of every expert in the MLPs before training")
    elsewhere: float = Field(default=0.3, description="coefficient of every expert outside of the MLPs")
    decide: Literal["auto", "token", "batch_mean"] = Field(
        default="auto",
        description="auto: for a sample, in causal decoders for a token; token; batch_mean: as released code does",
    )
    blocks: str | None = Field(default=None, description="children of a layer that are its MLP: mlp, or fc1+fc2")


class WemoeSettings(BlockSettings):
    """Settings of `Wemoe`."""

    name: Literal["wemoe"] = "wemoe"


class Wemoe:
    """Weigh the experts' MLPs for every sample by small trained networks, and add everything else by task arithmetic.

    In each block, with the input h of its MLP, ``r = mean over tokens of gate(h)``, and the MLP has the parameters
    ``θ₀ + Σₜ rₜ τₜ``; all others are ``θ₀ + λ Σₜ τₜ`` (arXiv:2402.00433, eqs. 5-7). A gate is
    ``Linear(d, d) → ReLU → Linear(d, T)`` (depth 2), ``Linear(d, T)`` (1) or a vector (0), without a softmax. Weights
    are drawn from N(0, 0.01²), hidden biases are 0, and the last bias is ``initial``. Only gates are trained.

    Choose it if rows of the tasks' inputs can be had, and one set of coefficients is not enough for all of them.

    Decisions are for a sample, and padding does not count. In a causal decoder the mean over tokens would read the
    future, so there they are for a token. Low-rank experts stay so: ``y = W₀h + Σₜ rₜ s Bₜ(Aₜh)``. Experts that were
    fine-tuned whole are weighed with their biases, as ``Σₜ rₜ ΔWₜh``: no weight is made for a sample. Layer norms
    inside of a block count as everything else. The paper trains on test images; here it is train rows, unless ``split:
    oracle`` says otherwise. Released code for it also takes the mean over a batch (``decide: batch_mean``), so that
    answers depend on the other rows of the batch, and tell the task if a batch has one.
    """

    name = "wemoe"
    settings: type[RouteSettings] = WemoeSettings
    needs: Literal["nothing", "rows"] = "rows"
    reference = "arXiv:2402.00433"
    kinds = ("lora", "full")

    def __call__(
        self, experts: Mapping[str, Adapter], settings: WemoeSettings, bench: RoutingBench | None = None
    ) -> Adapter:
        """Return the routed adapter; see `tangora.routing.contract.Router`."""
        from tangora.routing.block_gates import gates_of  # deferred: torch
        from tangora.routing.learning import learned_adapter
        from tangora.routing.mlp_experts import block_network, parts_of

        assert bench is not None
        parts = parts_of(experts, bench.base.backbone, settings.blocks, settings.elsewhere)
        gates, gate_at = gates_of(parts.blocks, len(experts), settings, bench.seed)
        network = block_network(list(experts), parts, gates, gate_at)
        modules = network.settings.model_dump(mode="json")
        return learned_adapter(network, experts, settings, bench, modules=modules)


ROUTER = Wemoe()
