"""Options of several commands, and of all commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from tangora.cli import completion

__all__ = [
    "DigitsOption",
    "MethodsOption",
    "ModesOption",
    "FromHub",
    "Options",
    "OverwriteOption",
    "RecipeArgument",
    "RunArgument",
    "SameBaseOption",
    "SettingsOption",
    "SplitOption",
    "TableOutOption",
    "TrustOption",
]


@dataclass(frozen=True)
class FromHub:
    """Marks an argument of one or several folders that may be named as on the Hub: the command gets their paths.

    Attributes:
        purpose: what a folder is needed as: ``adapter``, ``checkpoint``, or ``any``.
    """

    purpose: Literal["adapter", "checkpoint", "any"]


SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key of the recipe.", autocompletion=completion.settings
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A YAML file, or the name of a bundled recipe.", autocompletion=completion.recipes
    ),
]
SameBaseOption = Annotated[bool, typer.Option("--same-base", help="Accept adapters that were made for another base.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Run code from the base model's repository if the recipe says so. Read it before."
    ),
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="METHOD", help="Only this one; repeatable.", autocompletion=completion.fusions),
]
ModesOption = Annotated[
    list[str] | None,
    typer.Option("--mode", metavar="MODE", help="Only this one; repeatable.", autocompletion=completion.modes),
]
DigitsOption = Annotated[int, typer.Option("--digits", metavar="N", help="Decimals.", rich_help_panel="Look")]
TableOutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it to a file.", rich_help_panel="Look")
]
SplitOption = Annotated[
    str, typer.Option("--split", help="Rows: train, validation or test.", autocompletion=completion.splits)
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every command: amount and format of its output."""

    json: Annotated[
        bool,
        typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel="Output"),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes: only the result.", rich_help_panel="Output")
    ] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Also the log, warnings, and tracebacks of errors.", rich_help_panel="Output"
        ),
    ] = False
