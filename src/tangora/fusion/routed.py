"""Route adapters instead of fusing them: check the experts, and call the router (`tangora.routing.contract.Router`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tangora.errors import ArgumentError, FusionError
from tangora.fusion.heads import fuse_whole
from tangora.support.seams import ROUTERS
from tangora.support.validation import did_you_mean, validate

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.config.routing import RouteSettings
    from tangora.fusion.fusion import Fusion
    from tangora.routing.contract import Router, RoutingBench

__all__ = ["check_experts", "refuse_of_methods", "route_settings", "routed"]

_WHERE = "fuse.adapters"


def routed(
    fusion: Fusion, settings: RouteSettings, bench: RoutingBench | None = None, *, where: str = "fuse.method"
) -> Adapter:
    """Return the routed adapter of the adapters of a fusion, which has checked that they go together.

    Args:
        fusion: of the experts.
        settings: of the router.
        bench: base and rows, if the router needs any.
        where: the key path for errors.

    Raises:
        ArgumentError: the router needs rows, and there are none.
        FusionError: an expert is of a kind that cannot be routed; heads differ, and it is not said that they are kept.
    """
    router = cast("Router", ROUTERS.get(settings.name))
    if router.needs == "rows" and (bench is None or not bench.tasks):
        fix = "use tangora.route with base= and tasks=, or an entry of fusion.methods in a recipe"
        raise ArgumentError(f"{router.name} learns from rows of the tasks", got="none", where=where, fix=fix)
    check_experts(fusion.adapters, fusion.names, getattr(router, "kinds", ("lora",)))
    heads = _kept(fusion)
    made = router(dict(zip(fusion.names, fusion.adapters, strict=True)), settings, bench)
    return replace(made, heads=heads)


def route_settings(method: str, given: Mapping[str, Any], *, where: str) -> RouteSettings:
    """Return the settings of a router from keywords.

    Raises:
        ArgumentError: one is unknown or invalid.
    """
    known = [name for name in ROUTERS.get(method).settings.model_fields if name != "name"]
    if odd := [name for name in given if name not in known]:
        fix = did_you_mean(odd[0], known) if known else "it has none"
        raise ArgumentError(f"{method}: unknown setting {odd[0]!r}", where=where, fix=fix)
    settings: RouteSettings = validate(ROUTERS.get(method).settings, {**given, "name": method}, where, ArgumentError)
    return settings


def check_experts(adapters: Sequence[Adapter], names: Sequence[str], kinds: Collection[str] = ("lora",)) -> None:
    """Refuse adapters that are no plain experts of the network.

    Args:
        adapters: all of one kind.
        names: for errors.
        kinds: those that the router takes.

    Raises:
        FusionError: names the adapter, and says why.
    """
    for name, adapter in zip(names, adapters, strict=True):
        about = adapter.metadata
        what, fix = "", "give LoRA or L-LoRA adapters"
        if about.kind not in kinds:
            what = f"{name} is of kind {about.kind}, and experts are low-rank"
        elif about.expanded:
            what = f"{name} answers in the network's expansion (tangent), in which no layer has an input of its own"
            fix = "make it an ordinary LoRA with tangora distill, or train with l-lora"
        elif about.base.adapted is not None or (adapter.config or {}).get("use_dora"):
            what = f"{name} is a DoRA adapter: its update depends on the base's weights, and is of full rank"
        elif adapter.details.tuner is not None:
            what = f"{name} is an adapter of {adapter.details.tuner}: its updates have no factors"
        elif adapter.details.file is not None:
            what = f"{name} is a single file of {adapter.details.file.title}, whose network is not loaded here"
            fix = "fuse it with a method, such as task_arithmetic"
        if what:
            raise FusionError(what, where=_WHERE, fix=fix)


def _kept(fusion: Fusion) -> Mapping[str, Mapping[str, Tensor]]:
    """Return the heads of tasks; refuse other parameters that were saved whole, since there is no sum of them."""
    if fusion.heads == "fuse":
        fix = "keep them, with heads='keep', --heads keep"
        raise FusionError("heads are not fused when experts are routed", got="fuse", where="fuse.heads", fix=fix)
    whole, heads = fuse_whole(fusion.adapters, fusion.names, [1.0] * len(fusion.adapters), None, fusion.heads)
    if whole:
        fix = "route adapters without modules_to_save, or keep their heads with heads='keep', --heads keep"
        raise FusionError("a parameter that is saved whole cannot be routed", got=min(whole), where=_WHERE, fix=fix)
    return heads


def refuse_of_methods(method: str, **given: Any) -> None:
    """Refuse arguments that only fusion methods have.

    Args:
        method: the router.
        given: name -> value; None, or ``delta`` for a space, if it was not given.

    Raises:
        ArgumentError: names the first.
    """
    reasons = {
        "weights": "it weighs the experts itself, for every token or sample",
        "rank": "every expert keeps its rank; some routers have a setting for it",
        "space": "experts stay as they are",
        "statistics": "it needs none",
    }
    for name, value in given.items():
        if value is not None and not (name == "space" and value == "delta"):
            what = f"{method} is a router: {reasons[name]}"
            raise ArgumentError(what, got=value, where=f"fuse.{name}", fix=f"leave {name} out")
