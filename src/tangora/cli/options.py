"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Overwrite", "RecipeArgument", "Settings"]

Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a bundled recipe.")]
