"""``tangora methods``: the fusion methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.cli.command import Command
from tangora.cli.options import Options
from tangora.cli.output import Output
from tangora.cli.tables import method_table

if TYPE_CHECKING:
    from tangora.methods import Method

__all__ = ["COMMAND", "MethodsOptions", "methods"]


@dataclass(frozen=True, kw_only=True)
class MethodsOptions(Options):
    """Nothing but how the list is printed."""


def methods(options: MethodsOptions, output: Output) -> None:
    """List the fusion methods: what each does, its parameters and default weight, and its paper."""
    from tangora.methods import methods as registered  # deferred: --help needs no registry

    known = registered()
    output.result({name: _document(method) for name, method in known.items()}, method_table(known))


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


COMMAND = Command(methods, example="tangora methods")
