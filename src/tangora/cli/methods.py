"""``tangora methods``: the fusion methods and the routers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.cli.command import Command
from tangora.cli.options import Options
from tangora.cli.output import Output
from tangora.cli.tables import method_table, router_settings, router_table

if TYPE_CHECKING:
    from tangora.methods import Method
    from tangora.routing.contract import Router

__all__ = ["COMMAND", "MethodsOptions", "methods"]


@dataclass(frozen=True, kw_only=True)
class MethodsOptions(Options):
    """Nothing but how the list is printed."""


def methods(options: MethodsOptions, output: Output) -> None:
    """List the fusion methods: what each does, its parameters and default weight, and its paper; and the routers."""
    from tangora.methods import methods as registered  # deferred: --help needs no registry
    from tangora.support.seams import ROUTERS

    known, routers = registered(), ROUTERS.all()
    document = {name: _document(method) for name, method in known.items()}
    document |= {name: _of_router(router) for name, router in routers.items()}
    output.result(document, method_table(known), router_table(routers))


def _document(method: Method) -> dict[str, Any]:
    return {
        "summary": method.summary,
        "choose": method.choose,
        "parameters": dict(method.parameters),
        "default_weight": method.default_weight,
        "granularity": method.granularity,
        "linear": method.linear,
        "statistics": method.statistics,
        "reference": method.reference,
    }


def _of_router(router: Router) -> dict[str, Any]:
    from tangora.routing.contract import choose_of, summary_of  # deferred: with the registry

    return {
        "summary": summary_of(router),
        "choose": choose_of(router),
        "parameters": router_settings(router),
        "router": True,
        "needs": router.needs,
        "reference": router.reference,
    }


COMMAND = Command(methods, example="tangora methods")
