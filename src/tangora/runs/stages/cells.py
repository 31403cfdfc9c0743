"""The cells of a comparison: every combination of mode, space, subset of tasks and entry of the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tangora.adapters.kinds import KINDS
from tangora.config.fusion import FusionEntry
from tangora.config.recipe import Recipe
from tangora.fusion.contract import space_of
from tangora.modes.contract import is_fusable, is_routable, mode_of
from tangora.runs.subsets import choose_subsets
from tangora.support.seams import ROUTERS

__all__ = ["Cell", "cells"]


@dataclass(frozen=True)
class Cell:
    """One cell of the comparison, before selection."""

    mode: str
    space: str
    subset: tuple[str, ...]
    entry: FusionEntry

    @property
    def place(self) -> dict[str, str]:
        """The columns that name the cell in a table."""
        subset = "+".join(self.subset)
        return {"mode": self.mode, "method": self.entry.label, "space": self.space, "subset": subset}


def cells(recipe: Recipe, subsets: Sequence[tuple[str, ...]] | None = None) -> Iterator[Cell]:
    """Return every (mode, space, subset, entry) of a recipe, or those of some of its subsets.

    Modes without factors skip spaces of factors and entries with a rank, and those that cannot be routed skip routers;
    modes that leave nothing to fuse are left out.
    """
    if subsets is None:
        subsets = choose_subsets([t.name for t in recipe.tasks], recipe.fusion.subsets, recipe.first_seed)
    mentioned = dict.fromkeys(space for entry in recipe.fusion.methods for space in entry.spaces)
    spaces = sorted(mentioned, key=lambda space: space != "delta")
    for mode, settings in recipe.modes.items():
        if not is_fusable(mode_of(settings), settings.model_extra or {}):
            continue
        for space in spaces:
            factors = KINDS[mode_of(settings).kind].has_factors
            if space_of(space).needs_factors and not factors:
                continue
            entries = [e for e in recipe.fusion.methods if space in e.spaces and mode in (e.modes or [mode])]
            entries = [e for e in entries if e.route is None or is_routable(mode_of(settings), ROUTERS.get(e.method))]
            entries = [e for e in entries if e.rank is None or factors]
            for subset in subsets:
                for entry in entries:
                    if len(subset) in (entry.sizes or [len(subset)]):
                        yield Cell(mode, space, subset, entry)
