"""Refuse recipes that cannot be run, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tangora.coefficients import grid
from tangora.coefficients.requirements import refuse_unless_searchable
from tangora.config.recipe import FusionEntry, Recipe
from tangora.errors import FusionError, RecipeError
from tangora.methods import get
from tangora.modes.contract import is_routable, mode_of
from tangora.runs.subsets import count_subsets
from tangora.support.extras import require
from tangora.support.seams import EXECUTORS, METRICS, ROUTERS

if TYPE_CHECKING:
    from tangora.tasks import Base

__all__ = ["check_methods", "check_modes"]

_MOST = 200_000  # subsets of a run: its plan, its tables and the memory of its driver grow with them
_SAMPLE = 50  # subsets of each size, as an example


def check_modes(recipe: Recipe, base: Base) -> None:
    """Check the settings of every mode that trains before any mode is trained.

    Raises:
        ModelError: a target matches nothing, a pattern is invalid, or initial values change the base weights.
    """
    for mode in recipe.modes:
        if recipe.trained(mode):
            config = recipe.finetune_config(mode)
            mode_of(config).check(base, config)


def check_methods(recipe: Recipe) -> None:
    """Check methods, their parameters and the packages of metrics before anything is trained.

    Raises:
        FusionError: a method or one of its parameters is unknown or out of range, a subset has a number of tasks that
            the method cannot fuse, a method that needs statistics is used in another space than delta, or a router is
            used with modes whose adapters cannot be routed.
        RecipeError: there are more subsets of the tasks than a run can fuse.
        MissingExtraError: the packages for training, the report, a metric or the executor are not installed.
    """
    require("train", "report", purpose="a run")
    _check_subsets(recipe)
    for name in dict.fromkeys(name for task in recipe.tasks for name in task.all_metrics):
        if extra := getattr(METRICS.get(name), "extra", None):
            require(extra, purpose=f"the metric {name}")
    if extra := getattr(EXECUTORS.get(recipe.executor.name), "extra", None):
        require(extra, purpose=f"the executor {recipe.executor.name}")
    for entry in recipe.fusion.methods:
        if entry.route is not None:
            _check_router(recipe, entry)
            continue
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


def _check_subsets(recipe: Recipe) -> None:
    """Refuse a number of subsets that no plan can hold, and say how many a sample has."""
    count, subsets = count_subsets(len(recipe.tasks), recipe.fusion.subsets), recipe.fusion.subsets
    if count > _MOST:
        sampled = count_subsets(len(recipe.tasks), subsets.model_copy(update={"per_size": _SAMPLE}))
        what = f"{len(recipe.tasks)} tasks have {count:,} subsets of these sizes, and a run fuses {_MOST:,} at most"
        fix = f"fewer sizes, or a sample of each: per_size: {_SAMPLE} gives {sampled:,}"
        raise RecipeError(what, where="fusion.subsets", fix=fix)


def _check_router(recipe: Recipe, entry: FusionEntry) -> None:
    """Refuse modes whose adapters cannot be routed, if the entry names them, or if there are no others."""
    modes = entry.modes or list(recipe.modes)
    router = ROUTERS.get(entry.method)
    odd = [mode for mode in modes if not is_routable(mode_of(recipe.modes[mode]), router)]
    if odd and (entry.modes or len(odd) == len(modes)):
        what, fix = f"adapters of train: {recipe.modes[odd[0]].train} cannot be routed", _fix(router)
        raise FusionError(what, got=odd[0], where=f"fusion.methods.{entry.label}.modes", fix=fix)
    for mode in (mode for mode in modes if mode not in odd):
        _refuse_alike(recipe, entry, router, mode)


def _refuse_alike(recipe: Recipe, entry: FusionEntry, router: Any, mode: str) -> None:
    """Refuse experts with one frozen A for a router that compares all directions of A: every input scores alike."""
    if not hasattr(router, "directions") or mode_of(recipe.modes[mode]).linearize != "module":
        return
    lora, compared = recipe.finetune_config(mode).lora, router.directions(entry.route)
    chosen = getattr(entry.route, "top_k", 1)
    if lora.a_init == "shared" and lora.r <= compared and any(size > chosen for size in _sizes(recipe, entry)):
        what = f"adapters of {mode} share A of rank {lora.r}, and {entry.method} compares {compared} directions"
        where = f"fusion.methods.{entry.label}"
        fix = "choose fewer directions or a larger rank, or name other modes in the entry: no input could decide"
        raise FusionError(what, where=where, fix=fix)


def _fix(router: object) -> str:
    if getattr(router, "linearized", False):
        return "give modes of l-lora"
    return "give modes of lora or l-lora" + (", or full" if "full" in getattr(router, "kinds", ()) else "")


def _sizes(recipe: Recipe, entry: FusionEntry) -> Iterator[int]:
    """Yield the sizes of the subsets that an entry of the comparison fuses."""
    sizes = recipe.fusion.subsets.sizes
    for size in range(2, len(recipe.tasks) + 1) if isinstance(sizes, str) else sizes:
        if size in (entry.sizes or [size]):
            yield size
