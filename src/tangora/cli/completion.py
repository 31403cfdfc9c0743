"""What the shell offers at TAB: names that are known without importing anything heavy.

Each function takes what was typed so far, and returns names, or pairs of a name and its help.
"""

from __future__ import annotations

from collections.abc import Iterable

import typer

from tangora.support import seams
from tangora.support.registry import Registry

__all__ = ["KINDS", "kinds", "methods", "modes", "recipes", "settings", "spaces", "splits", "statistics", "tasks"]

_SPLITS = ("train", "validation", "test")
KINDS = ("methods", "families", "metrics", "modes", "formats", "spaces", "searches", "executors")
"""What `tangora plugins` lists: fusion methods, and the registries of `tangora.support.seams`."""


def recipes(incomplete: str) -> list[str]:
    """Bundled recipes; where none fits, the shell goes on with files."""
    from tangora.config.recipe import bundled_recipes  # deferred: pydantic, only at TAB

    return _starting(bundled_recipes(), incomplete)


def methods(incomplete: str) -> list[tuple[str, str]]:
    """Fusion methods and what they do."""
    from tangora.methods import methods as registered  # deferred: reads every method, only at TAB

    return [(name, method.summary) for name, method in registered().items() if name.startswith(incomplete)]


def modes(context: typer.Context, incomplete: str) -> list[str]:
    """Modes of the recipe that was typed before; all known ones where it cannot be read."""
    from tangora.config.recipe import load_recipe  # deferred: pydantic, only at TAB
    from tangora.errors import TangoraError

    try:
        return _starting(load_recipe(context.params["recipe"]).modes, incomplete)
    except (TangoraError, KeyError, TypeError):
        return _starting(seams.MODES, incomplete)


def tasks(context: typer.Context, incomplete: str) -> list[str]:
    """Tasks of the recipe that was typed before."""
    from tangora.config.recipe import load_recipe  # deferred: pydantic, only at TAB
    from tangora.errors import TangoraError

    try:
        return _starting((task.name for task in load_recipe(context.params["recipe"]).tasks), incomplete)
    except (TangoraError, KeyError, TypeError):
        return []


def spaces(incomplete: str) -> list[str]:
    """Spaces in which adapters are fused."""
    return _starting([*seams.SPACES] or ["core", "delta", "factors"], incomplete)


def splits(incomplete: str) -> list[str]:
    """The splits of a task."""
    return _starting(_SPLITS, incomplete)


def statistics(incomplete: str) -> list[str]:
    """Kinds of statistics."""
    return _starting(["gram", "fisher"], incomplete)


def settings(incomplete: str) -> list[str]:
    """Values of keys of a recipe that name something, such as ``fusion.methods.0.search=convex``."""
    key, equals, value = incomplete.partition("=")
    named: dict[str, Registry] = {
        "search": seams.SEARCHES,
        "metric": seams.METRICS,
        "family": seams.FAMILIES,
        "executor": seams.EXECUTORS,
    }
    last = key.rpartition(".")[2]
    if not equals:
        return []
    known = [name for name, _ in methods("")] if last == "method" else named.get(last, ())
    return [f"{key}={name}" for name in _starting(known, value)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def kinds(incomplete: str) -> list[str]:
    """Kinds of plugins."""
    return _starting(KINDS, incomplete)
