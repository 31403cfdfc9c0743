"""The rows of tasks for a command that learns from them: ``--data NAME=FILE`` for every task, or ``--recipe``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tangora.cli import completion
from tangora.errors import ArgumentError

__all__ = ["ROWS", "DataOption", "RecipeOption", "RecipeSettings", "row_files"]

ROWS = "Rows"
"""The group of these options."""

DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME=FILE",
        help="Rows of a task's inputs: .parquet, .csv, .jsonl, .npz, or a folder of images.",
        rich_help_panel=ROWS,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="Take base and rows from a recipe.",
        autocompletion=completion.recipes,
        rich_help_panel=ROWS,
    ),
]
RecipeSettings = Annotated[
    list[str] | None,
    typer.Option("--recipe-set", metavar="KEY=VALUE", help="Change one key of the recipe.", rich_help_panel=ROWS),
]


def row_files(
    who: str, data: Sequence[str] | None, recipe: str | None, settings: Sequence[str] | None, base: str | None
) -> dict[str, Path]:
    """Return task -> file of its rows; empty with a recipe.

    Args:
        who: needs the rows; for errors.
        data: ``NAME=FILE``, for every task.
        recipe: a recipe instead.
        settings: changes of the recipe.
        base: the base, which a recipe names itself.

    Raises:
        ArgumentError: neither ``--data`` nor ``--recipe``, both, or not NAME=FILE.
    """
    if bool(data) == (recipe is not None):
        fix = "give --data NAME=FILE for every task; or --recipe RECIPE, whose rows are used"
        got = "both" if data else "neither"
        raise ArgumentError(f"{who} needs rows of the tasks' inputs", got=got, where="--data", fix=fix)
    if recipe is None and settings:
        raise ArgumentError("there is no recipe to change", where="--recipe-set", fix="give --recipe, or leave it out")
    if recipe is not None and base is not None:
        fix = "change it with --recipe-set base.model=..."
        raise ArgumentError("the recipe names the base", got=base, where="--base", fix=fix)
    files: dict[str, Path] = {}
    for text in data or ():
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise ArgumentError("rows are NAME=FILE", got=text, where="--data", fix="for example sst2=reviews.csv")
        if name in files:
            raise ArgumentError("two files for one task", got=name, where="--data", fix="join them into one")
        files[name] = Path(file)
    return files
