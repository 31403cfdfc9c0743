"""``tangora recipe``: the bundled recipes, every key of a recipe, and a JSON Schema for editors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options
from tangora.cli.output import Output
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.config.reference import Key

__all__ = ["COMMAND", "RecipeOptions", "recipe"]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    """What to look up."""

    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="list, show, keys or schema.", autocompletion=completion.recipe_parts),
    ]
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="show: a recipe; keys: where, such as tasks.", autocompletion=completion.recipes
        ),
    ] = None
    family: Annotated[
        str | None,
        typer.Option("--family", help="keys: only those of this family.", autocompletion=completion.families),
    ] = None
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="keys: only those of this train of a mode.", autocompletion=completion.modes),
    ] = None


def recipe(options: RecipeOptions, output: Output) -> None:
    """List or show the bundled recipes, list every key of a recipe, or print a JSON Schema of recipes.

    An editor that knows the schema completes keys and marks faults.
    """
    parts = {"list": _list, "show": _show, "keys": _keys, "schema": _schema}
    if options.what not in parts:
        from tangora.support.validation import did_you_mean  # deferred: only for a wrong name

        fix = did_you_mean(options.what, list(parts))
        raise ArgumentError("nothing to look up", got=options.what, where="tangora recipe", fix=fix)
    for name, taken in (("--family", options.family), ("--mode", options.mode)):
        if taken is not None and options.what != "keys":
            raise ArgumentError("an option of keys", got=options.what, where=name, fix="leave it out")
    if options.name is not None and options.what in ("list", "schema"):
        raise ArgumentError(
            f"{options.what} takes no name", got=options.name, where="tangora recipe", fix="leave it out"
        )
    parts[options.what](options, output)


def _list(options: RecipeOptions, output: Output) -> None:
    from tangora.config.recipe import bundled_recipes, bundled_text  # deferred: --help needs no pydantic
    from tangora.support.yaml import parse

    raw = {name: parse(bundled_text(name)) for name in bundled_recipes()}
    found = {name: {"title": one["title"], "family": one["base"]["family"]} for name, one in raw.items()}
    widest = max(map(len, found))
    output.result(found, *(f"{name:<{widest}}  {about['title']}" for name, about in found.items()))


def _show(options: RecipeOptions, output: Output) -> None:
    from tangora.config.recipe import bundled_text  # deferred: --help needs no pydantic

    if options.name is None:
        fix = "give one of those that tangora recipe list names"
        raise ArgumentError("which recipe?", where="tangora recipe show", fix=fix)
    text = bundled_text(options.name)
    output.text({"name": options.name, "yaml": text}, text)


def _keys(options: RecipeOptions, output: Output) -> None:
    from tangora.config.reference import keys_below, recipe_keys  # deferred: --help needs no pydantic

    keys = recipe_keys(family=options.family, mode=options.mode)
    chosen = keys_below(options.name, keys) if options.name else keys
    output.result({"keys": [asdict(key) for key in chosen]}, *_lines(chosen))


def _lines(keys: Sequence[Key]) -> Iterator[str]:
    for key in keys:
        default = "required" if key.required else None if key.default is None else f"default: {key.default}"
        of = f"{key.of}: {', '.join(key.names)}" if key.of else None
        yield "; ".join(part for part in (f"{key.path}: {key.type}", default, of) if part)
        yield f"  {key.description}"


def _schema(options: RecipeOptions, output: Output) -> None:
    from tangora.config.json_schema import recipe_schema  # deferred: --help needs no pydantic

    schema = recipe_schema()
    output.text(schema, json.dumps(schema, indent=2, ensure_ascii=False))


COMMAND = Command(recipe, example="tangora recipe keys tasks --family causal-lm")
