"""A network whose gates learn from rows, as an adapter with a record of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tangora.polishing.routes import RouteTraining, learn_routes
from tangora.routing.assembly import adapter_from

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.learning import LearnedSettings
    from tangora.modular.network import Network
    from tangora.routing.contract import RoutingBench

__all__ = ["learned_adapter"]


def learned_adapter(
    network: Network,
    experts: Mapping[str, Adapter],
    settings: LearnedSettings,
    bench: RoutingBench,
    *,
    modules: Mapping[str, Any],
    train: str = "routed",
    more: Mapping[str, Any] | None = None,
) -> Adapter:
    """Train the gates of a network, and return its adapter.

    How the gates were trained, on how many rows of which split, and the curve of the loss are in
    ``metadata.fused.selection``.

    Args:
        network: of the experts and gates; its gates are changed in place.
        experts: name -> adapter.
        settings: of the router.
        bench: base and rows.
        modules: what the network is made of, as JSON.
        train: the mode that answers with it.
        more: further entries of the record.
    """
    gates = {name: p for name, p in network.named_parameters() if name.startswith("gates.") or name.endswith(".router")}
    given = RouteTraining(
        base=bench.base,
        tasks=bench.tasks,
        experts=experts,
        settings=settings,
        seed=bench.seed,
        scratch=bench.scratch,
        cache=bench.cache,
        on_step=bench.on_step,
    )
    record = learn_routes(network, gates, given)
    made = adapter_from(network.cpu(), experts, settings, modules=modules, train=train, seed=bench.seed)
    fused = made.metadata.fused
    assert fused is not None
    fused = fused.model_copy(update={"selection": {**record, **(more or {})}})
    return replace(made, metadata=made.metadata.model_copy(update={"fused": fused}))
