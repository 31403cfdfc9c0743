"""The options that several commands have, and those that every command has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tangora.cli import completion

__all__ = [
    "Options",
    "OverwriteOption",
    "RecipeArgument",
    "RunArgument",
    "SameBaseOption",
    "SettingsOption",
    "SplitOption",
]

SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key of the recipe.", autocompletion=completion.settings
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A YAML file, or the name of a bundled recipe.", autocompletion=completion.recipes
    ),
]
SameBaseOption = Annotated[
    bool, typer.Option("--same-base", help="The base is the right one although an adapter names another.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
SplitOption = Annotated[
    str, typer.Option("--split", help="Rows: train, validation or test.", autocompletion=completion.splits)
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command has: how much it prints, and in which form."""

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
