"""What a recipe asks for that cannot be done, refused before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tangora.coefficients import grid
from tangora.coefficients.requirements import refuse_unless_searchable
from tangora.config.recipe import FusionEntry, Recipe
from tangora.errors import FusionError
from tangora.methods import get
from tangora.modes.contract import mode_of
from tangora.support.extras import require

if TYPE_CHECKING:
    from tangora.tasks import Base

__all__ = ["check_methods", "check_modes"]


def check_modes(recipe: Recipe, base: Base) -> None:
    """Refuse what a mode cannot adapt, or start from, before any other mode is trained.

    Raises:
        ModelError: a target that matches nothing, a pattern that is none, or a start that changes the base weights.
    """
    for config in (recipe.finetune_config(mode) for mode in recipe.modes):
        mode_of(config).check(base, config)


def check_methods(recipe: Recipe) -> None:
    """Refuse unknown methods and parameters before anything is trained.

    Raises:
        FusionError: a method or one of its parameters is unknown or out of range, a subset has another number of
            tasks than the method can fuse, or a method that needs statistics is to be used in another space than delta.
        MissingExtraError: what draws the report at the end is not installed.
    """
    require("train", "report", purpose="a run")
    for entry in recipe.fusion.methods:
        method = get(entry.method)
        linearized = [m for m in entry.modes or recipe.modes if mode_of(recipe.modes[m]).linear_in_coefficients]
        refuse_unless_searchable(entry, linearized)
        for candidate in grid.candidates(1.0, entry.parameters):
            method.check(candidate.parameters)
        if method.statistics and (others := sorted(set(entry.spaces) - {"delta"})):
            what, where = f"{method.name}: statistics are of whole weights", f"fusion.methods.{entry.label}.spaces"
            raise FusionError(what, got=others[0], where=where, fix="leave the spaces out, or give delta")
        for size in _sizes(recipe, entry):
            method.check_count(size, where=f"fusion.methods.{entry.label}.sizes")


def _sizes(recipe: Recipe, entry: FusionEntry) -> Iterator[int]:
    """The numbers of tasks that an entry of the comparison fuses."""
    sizes = recipe.fusion.subsets.sizes
    for size in range(2, len(recipe.tasks) + 1) if isinstance(sizes, str) else sizes:
        if size in (entry.sizes or [size]):
            yield size
