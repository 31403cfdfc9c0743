"""What `tangora fuse` and `tangora merge` have in common: how models are fused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.options import FromHub, Options, OverwriteOption
from tangora.cli.weights import parse_parameters, parse_weights

if TYPE_CHECKING:
    from tangora.fusion.weights import WeightTable

__all__ = ["ADAPTERS", "CHECKS", "BaseFolder", "FusionOptions"]

ADAPTERS = "Adapters"
"""The group of options that only adapters have."""
CHECKS = "Checks"
"""The group of options that say what is checked."""

BaseFolder = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="BASE",
        help="The base model of the adapters: a folder, or org/name.",
        rich_help_panel=ADAPTERS,
    ),
    FromHub("checkpoint"),
]


@dataclass(frozen=True, kw_only=True)
class FusionOptions(Options):
    """The method and its weights, where the result goes, and what is allowed."""

    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the result goes.")]
    method: Annotated[
        str, typer.Option("--method", "-m", help="See: tangora methods.", autocompletion=completion.methods)
    ] = "task_arithmetic"
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            "-w",
            metavar="NUMBERS",
            help="One number for all, one each: 0.3,0.5,-0.2, or FILE.json. Default: the method's.",
        ),
    ] = None
    parameters: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method: density=0.2")
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="For methods that draw random masks.")] = 0
    overwrite: OverwriteOption = False
    space: Annotated[
        str,
        typer.Option(
            "--space",
            help="delta: the updates BA. factors: A and B apart. core: BA in common bases.",
            autocompletion=completion.spaces,
            rich_help_panel=ADAPTERS,
        ),
    ] = "delta"
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads",
            help="modules_to_save: keep one per task, or fuse them by name.",
            autocompletion=completion.heads,
            rich_help_panel=ADAPTERS,
        ),
    ] = None
    same_base: Annotated[
        bool,
        typer.Option(
            "--same-base",
            help="Treat adapters whose base names differ as sharing one base model.",
            rich_help_panel=CHECKS,
        ),
    ] = False
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Read the result again and compare it with its adapters.",
            rich_help_panel=CHECKS,
        ),
    ] = True

    def numbers(self) -> WeightTable | float | None:
        """Return the weights as `tangora.fuse` takes them; None if none were given."""
        return parse_weights(self.weights)

    def settings(self) -> dict[str, Any]:
        """Return the method's own parameters."""
        return parse_parameters(self.parameters)
