"""E-WEMoE (arXiv:2410.21804): WEMoE with pruned experts, and one gate for all blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tangora.routing.contract import RouteSettings, RoutingBench
from tangora.routing.routers.wemoe import BlockSettings

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["ROUTER", "EWemoe", "EWemoeSettings"]


class EWemoeSettings(BlockSettings):
    """Settings of `EWemoe`."""

    name: Literal["e-wemoe"] = "e-wemoe"
    keep: float = Field(default=0.1, gt=0, le=1, description="share of the entries of each change of an MLP's tensor")
    shared: bool = Field(default=True, description="one gate for all blocks, rather than one for each")
    code: int = Field(
        default=0, ge=0, multiple_of=2, description="numbers that tell a shared gate the layer; usually 8"
    )
    form: Literal["sparse", "low-rank"] = Field(
        default="sparse", description="of pruned matrices; low-rank: factored again, with the error recorded"
    )
    rank: int | None = Field(default=None, ge=1, description="of form: low-rank")

    @model_validator(mode="after")
    def _consistent(self) -> EWemoeSettings:
        if (self.rank is None) == (self.form == "low-rank"):
            raise ValueError("form: low-rank needs a rank, and only it has one")
        if self.code and not self.shared:
            raise ValueError("a gate of its own needs no code of the layer: leave code out, or set shared: true")
        if self.form == "low-rank" and self.keep == 1:
            raise ValueError("nothing is pruned with keep: 1: leave form and rank out")
        return self


class EWemoe:
    """Weigh pruned MLPs of the experts by one trained gate that all blocks share.

    As ``wemoe``, but of each change of an MLP's tensor only the entries of largest magnitude are kept, a share of
    ``keep``, and one gate serves all blocks, which must then have inputs of one width (arXiv:2410.21804). With ``code``
    a sinusoidal code of the block's number is appended to the gate's input; the hidden layer stays as wide as h.

    Choose it for experts that were fine-tuned whole, of which it saves a fifth (``keep: 0.1``: each entry has a value
    and a column). Low-rank experts are usually smaller than their pruned matrices: for these, choose ``wemoe``.

    A pruned low-rank matrix is of full rank, so it is kept as a sparse one, exactly. ``form: low-rank`` factors it
    again to ``rank``; the relative errors of both steps are in ``metadata.fused``. With ``keep: 1`` and ``shared:
    false`` it is WEMoE.
    """

    name = "e-wemoe"
    settings: type[RouteSettings] = EWemoeSettings
    needs: Literal["nothing", "rows"] = "rows"
    reference = "arXiv:2410.21804"
    kinds = ("lora", "full")

    def __call__(
        self, experts: Mapping[str, Adapter], settings: EWemoeSettings, bench: RoutingBench | None = None
    ) -> Adapter:
        """Return the routed adapter; see `tangora.routing.contract.Router`."""
        from tangora.routing.block_gates import gates_of  # deferred: torch
        from tangora.routing.learning import learned_adapter
        from tangora.routing.mlp_experts import block_network, factored, parts_of, pruning_error, sparse

        assert bench is not None
        parts = parts_of(experts, bench.base.backbone, settings.blocks, settings.elsewhere)
        gates, gate_at = gates_of(
            parts.blocks, len(experts), settings, bench.seed, shared=settings.shared, code=settings.code
        )
        if settings.rank is not None:
            small, pruning, truncation = factored(parts, settings.keep, settings.rank)
            network = block_network(list(experts), small, gates, gate_at)
            errors = {"pruning_error": pruning, "truncation_error": truncation}
        else:
            network = block_network(list(experts), sparse(parts, settings.keep), gates, gate_at)
            errors = {"pruning_error": pruning_error(network, parts)}
        modules = network.settings.model_dump(mode="json")
        return learned_adapter(network, experts, settings, bench, modules=modules, more=errors)


ROUTER = EWemoe()
