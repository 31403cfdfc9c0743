"""The amount of work of jobs that score fusions, in rows that pass forward through the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tangora.coefficients.requirements import is_plain_sum
from tangora.config.fusion import SearchSettings
from tangora.config.recipe import FusionEntry, Recipe
from tangora.methods import get
from tangora.modes.contract import mode_of
from tangora.runs.jobs import Resources
from tangora.runs.sources import Sources
from tangora.runs.stages.cells import Cell
from tangora.runs.stages.column_files import scored_on_columns
from tangora.support.seams import ROUTERS, SEARCHES

__all__ = ["cells_work", "rows_of"]

_ADDED_UP = 0.01  # cost of scoring a row on existing columns, in forward passes


def rows_of(sources: Sources, tasks: Iterable[str], *splits: str) -> float:
    """Return the total number of rows in the splits of some tasks."""
    return float(sum(sources.tasks[name].rows[split] for name in tasks for split in splits))


def cells_work(recipe: Recipe, sources: Sources, listed: Sequence[Cell]) -> Resources:
    """Return the cost of choosing the coefficients of cells and scoring the chosen candidates."""
    chosen = [_choice(recipe, sources, cell) for cell in listed]
    others = recipe.evaluation.others
    scored = [
        _pass(recipe, sources, cell) * rows_of(sources, sources.tasks if others else cell.subset, "test")
        for cell in listed
    ]
    trained = [_polish(recipe, sources, cell) + _route(sources, cell) for cell in listed]
    total = sum(scored) + sum(trained) + sum(work for work in chosen if work is not None)
    return Resources(total, known=None not in chosen)


def _polish(recipe: Recipe, sources: Sources, cell: Cell) -> float:
    """Return the cost of polishing a cell's chosen fusions."""
    settings = cell.entry.polish
    if settings is None:
        return 0.0
    given = cell.entry.search is None and _candidates(cell.entry) == 1
    times = 1 if given else len(recipe.fusion.selection)
    classes = all(sources.tasks[name].classes for name in cell.subset)
    return times * settings.passes([sources.tasks[name].rows[settings.split] for name in cell.subset], classes=classes)


def _route(sources: Sources, cell: Cell) -> float:
    """Return the cost of a router that learns from the cell's tasks."""
    settings = cell.entry.route
    if settings is None or ROUTERS.get(settings.name).needs == "nothing":
        return 0.0
    classes = all(sources.tasks[name].classes for name in cell.subset)
    return settings.passes([sources.tasks[name].rows[settings.rows_of] for name in cell.subset], classes=classes)


def _pass(recipe: Recipe, sources: Sources, cell: Cell) -> float:
    """Return the cost of scoring a row by one candidate."""
    if cell.entry.route is not None:
        return 1.0
    linear = get(cell.entry.method).linear and cell.entry.rank is None
    on_columns = linear and scored_on_columns(recipe, sources, cell.mode)
    return _ADDED_UP if on_columns else 1.0


def _choice(recipe: Recipe, sources: Sources, cell: Cell) -> float | None:
    """Return the work of choosing the coefficients of a cell, over all selections; None if it is unknown."""
    settings, total = cell.entry.search, 0.0
    if settings is None and _candidates(cell.entry) == 1:
        return 0.0
    for selection in recipe.fusion.selection:
        rows = [sources.tasks[name].rows["test" if selection == "oracle" else "validation"] for name in cell.subset]
        if settings is None:
            total += _pass(recipe, sources, cell) * _candidates(cell.entry) * sum(rows)
        elif (work := _search(recipe, sources, cell, settings, rows)) is not None:
            total += work
        else:
            return None
    return total


def _search(
    recipe: Recipe, sources: Sources, cell: Cell, settings: SearchSettings, rows: Sequence[int]
) -> float | None:
    """Return the work of one search; None if it is unknown."""
    limited = [count if settings.row_limit is None else min(count, settings.row_limit) for count in rows]
    on_logits = SEARCHES.get(settings.name).needs != "loss"
    if on_logits and mode_of(recipe.modes[cell.mode]).linear_in_coefficients and is_plain_sum(get(cell.entry.method)):
        if settings.per_site:
            return None  # a column for each site, and their number depends on the model
        if scored_on_columns(recipe, sources, cell.mode):
            return _ADDED_UP * sum(limited)
        return 2.0 * sum(limited) * (1 + len(cell.subset))
    passes = settings.passes(limited)
    return passes if passes is None or on_logits else _pass(recipe, sources, cell) * passes


def _candidates(entry: FusionEntry) -> int:
    """Return the number of points of an entry's grid."""
    lists = (value for value in (entry.weights, *entry.parameters.values()) if isinstance(value, list))
    return math.prod(len(values) for values in lists)
