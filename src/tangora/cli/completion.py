"""Completion of names in the shell, without importing anything heavy.

Each function takes the word that was typed so far, and returns names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.errors import TangoraError

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe
    from tangora.support.registry import Registry

__all__ = [
    "ANALYSES",
    "KINDS",
    "analyses",
    "executors",
    "families",
    "formats",
    "fusions",
    "heads",
    "kinds",
    "methods",
    "metrics",
    "mode_lists",
    "modes",
    "recipe_parts",
    "recipes",
    "recorded_tasks",
    "searches",
    "servers",
    "settings",
    "spaces",
    "splits",
    "statistics",
    "tasks",
]

_SPLITS = ("train", "validation", "test")
KINDS = ("methods", "families", "metrics", "modes", "formats", "spaces", "searches", "routers", "executors")
"""The kinds that `tangora plugins` lists: fusion methods, and the registries of `tangora.support.seams`."""
ANALYSES = ("signs", "angles", "planes", "linearity")
"""The analyses of `tangora analyze`."""


def recipes(incomplete: str) -> list[str]:
    """Return bundled recipes; if none fits, the shell completes files."""
    from tangora.config.recipe import bundled_recipes  # deferred: pydantic, only at TAB

    return _starting(bundled_recipes(), incomplete)


def methods(incomplete: str) -> list[str]:
    """Fusion methods.

    Their modules import torch, which takes longer than anybody waits at TAB: the names of ours are read from the text.
    """
    from importlib import metadata, resources  # deferred: only at TAB

    package = resources.files("tangora") / "methods"
    texts = (file.read_text(encoding="utf-8") for file in package.iterdir() if file.name.endswith(".py"))
    ours = [name for text in texts for name in re.findall(r'^@fusion_(?:method|step)\(\s*"(\w+)"', text, re.MULTILINE)]
    others = [entry.name for entry in metadata.entry_points(group="tangora.methods")]
    return _starting(sorted({*ours, *others}), incomplete)


def servers(incomplete: str) -> list[str]:
    """Targets of `tangora export`."""
    from tangora.serving.exporting import TARGETS  # deferred: only at TAB

    return _starting(TARGETS, incomplete)


def recipe_parts(incomplete: str) -> list[str]:
    """What `tangora recipe` looks up."""
    return _starting(["list", "show", "keys", "schema"], incomplete)


def families(incomplete: str) -> list[str]:
    """Return all families."""
    return _starting(_registry("FAMILIES"), incomplete)


def fusions(incomplete: str) -> list[str]:
    """Fusion methods and routers, which ``tangora fuse`` and recipes name in the same place."""
    return sorted([*methods(incomplete), *_starting(_registry("ROUTERS"), incomplete)])


def modes(incomplete: str) -> list[str]:
    """Return modes of the recipe or the run on the line; all known ones if it cannot be read."""
    recipe = _recipe()
    return _starting(_registry("MODES") if recipe is None else recipe.modes, incomplete)


def mode_lists(incomplete: str) -> list[str]:
    """Return completions of a comma-separated list of modes."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in modes(last)]


def analyses(incomplete: str) -> list[str]:
    """Return completions of a comma-separated list of analyses."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting(ANALYSES, last)]


def executors(incomplete: str) -> list[str]:
    """Return executors."""
    return _starting(_registry("EXECUTORS"), incomplete)


def metrics(incomplete: str) -> list[str]:
    """Registered metrics."""
    return _starting(_registry("METRICS"), incomplete)


def searches(incomplete: str) -> list[str]:
    """Registered searches, and the grid."""
    return _starting(["grid", *_registry("SEARCHES")], incomplete)


def heads(incomplete: str) -> list[str]:
    """Return the choices of ``--heads``."""
    return _starting(("keep", "fuse"), incomplete)


def tasks(incomplete: str) -> list[str]:
    """Return tasks of the recipe on the line."""
    recipe = _recipe()
    return [] if recipe is None else _starting((task.name for task in recipe.tasks), incomplete)


def recorded_tasks(incomplete: str) -> list[str]:
    """Return tasks that an adapter on the line records."""
    found = (path.stem for word in _words() for path in Path(word, "heads").glob("*.json"))
    return _starting(sorted(set(found)), incomplete)


def _words() -> list[str]:
    """The words after the command's name, without options.

    The line is not whole yet, so that typer has not parsed it; the scripts of the shells pass it in the environment.
    """
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return [word.strip("'\"") for word in line.split()[2:] if not word.startswith("-")]


def _recipe() -> Recipe | None:
    """The first word on the line that is a recipe, or a run, which has one in its folder."""
    from tangora.config.recipe import load_recipe  # deferred: pydantic, only at TAB

    for name in _words():
        with suppress(TangoraError):
            return load_recipe(next((path for path in [Path(name, "recipe.yaml")] if path.is_file()), name))
    return None


def formats(incomplete: str) -> list[str]:
    """Formats of adapters."""
    return _starting(_registry("FORMATS"), incomplete)


def spaces(incomplete: str) -> list[str]:
    """Spaces in which adapters are fused."""
    return _starting(_registry("SPACES"), incomplete)


def splits(incomplete: str) -> list[str]:
    """The splits of a task."""
    return _starting(_SPLITS, incomplete)


def statistics(incomplete: str) -> list[str]:
    """Kinds of statistics."""
    return _starting(["gram", "fisher"], incomplete)


def settings(incomplete: str) -> list[str]:
    """Return values of keys of a recipe that are names, such as ``fusion.methods.0.search=convex``."""
    key, equals, value = incomplete.partition("=")
    named: dict[str, Registry] = {
        "search": _registry("SEARCHES"),
        "metric": _registry("METRICS"),
        "family": _registry("FAMILIES"),
        "executor": _registry("EXECUTORS"),
    }
    last = key.rpartition(".")[2]
    if not equals:
        return []
    known = fusions("") if last == "method" else named.get(last, ())
    return [f"{key}={name}" for name in _starting(known, value)]


def polish_settings(incomplete: str) -> list[str]:
    """Return the settings of a polish, as ``KEY=``."""
    from tangora.config.polish import PolishSettings  # deferred: as above

    return _starting([f"{name}=" for name in PolishSettings.model_fields], incomplete)


def _registry(seam: str) -> Registry:
    from tangora.support import seams  # deferred: only at TAB

    registry: Registry = getattr(seams, seam)
    return registry


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def kinds(incomplete: str) -> list[str]:
    """Kinds of plugins."""
    return _starting(KINDS, incomplete)
