"""Load a recipe from YAML: a file or a bundled name, with ``--set a.b=c`` applied to it.

The models are defined in `schema` and `settings` and exported here. A relative path in a recipe is that of a file
beside the recipe, or if there is none, of one in the working directory (`tangora.config.places`). Nothing here imports
torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from tangora.config.places import Location, resolved
from tangora.config.schema import (
    BaseConfig,
    BaseSettings,
    EvaluationConfig,
    FinetuneConfig,
    FusionConfig,
    FusionEntry,
    LoraSettings,
    ModeConfig,
    Recipe,
    Source,
    SubsetConfig,
    TaskConfig,
    TaskSettings,
    TrainingSettings,
)
from tangora.errors import FileError, RecipeError
from tangora.support.files import reachable
from tangora.support.hub import hub_reference
from tangora.support.validation import did_you_mean, validate
from tangora.support.yaml import parse

__all__ = [
    "BaseConfig",
    "BaseSettings",
    "EvaluationConfig",
    "FinetuneConfig",
    "FusionConfig",
    "FusionEntry",
    "LoraSettings",
    "ModeConfig",
    "Recipe",
    "Source",
    "SubsetConfig",
    "TaskConfig",
    "TaskSettings",
    "TrainingSettings",
    "bundled_recipes",
    "bundled_text",
    "load_recipe",
    "load_run_recipe",
    "no_run",
    "validate_text",
]

log = logging.getLogger("tangora")


def bundled_recipes() -> list[str]:
    """Return the names that `load_recipe` accepts in place of a path."""
    folder = resources.files("tangora") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def bundled_text(name: str) -> str:
    """Return the YAML of a bundled recipe.

    Raises:
        RecipeError: there is none of that name.
    """
    bundled = bundled_recipes()
    if name not in bundled:
        raise RecipeError("no such recipe", got=name, fix=did_you_mean(name, bundled) + "; a file needs its path")
    return (resources.files("tangora") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(source: str | Path, settings: Sequence[str] = (), *, trust_remote_code: bool = False) -> Recipe:
    """Read a recipe file, or a bundled one by name, and apply ``a.b=c`` settings.

    Paths in the file are relative to its folder. One that does not exist there but in the working directory is used
    too, and the log says so. Paths in settings are relative to the working directory.

    Args:
        source: a path (anything with a ``/``, with the suffix ``.yaml``, or that exists), else a bundled name.
        settings: ``key.path=value``, the value in YAML; list items by index, named items (tasks) by name too.
        trust_remote_code: run code from the base model's repository if the recipe's ``base.trust_remote_code`` says so.
            A file alone cannot decide it: without this, or the setting, such a base is refused when it is loaded.

    Raises:
        FileError: the file is missing or unreadable.
        RecipeError: it is not YAML, a key is unknown (the nearest valid one is named) or given twice, a value has the
            wrong type, or ``${data.KEY}`` has no value.

    >>> load_recipe("quickstart", ["seed=7"]).seed
    7
    """
    recipe, elsewhere = _load(source, settings, trust_remote_code)
    if elsewhere:
        log.warning("%s: in the working directory, and not beside the recipe: %s", source, ", ".join(elsewhere))
    return recipe


def _load(source: str | Path, settings: Sequence[str], trust_remote_code: bool) -> tuple[Recipe, list[str]]:
    """Return a recipe, and the paths that were found in the working directory and not beside it."""
    text, where = _read(source)
    try:
        raw = parse(text)
    except ValueError as cause:
        raise RecipeError(f"not readable as YAML ({cause})", where=where, fix="fix the syntax") from cause
    if not isinstance(raw, dict):
        raise RecipeError("a recipe is a mapping", got=type(raw).__name__, where=where, fix="see the bundled recipes")
    given = {_apply(raw, setting) for setting in settings}
    for one, other in (("seed", "seeds"), ("seeds", "seed")):
        if (one,) in given and (other,) not in given:  # a setting of one replaces the other of the file
            raw.pop(other, None)
    data = raw.get("data") or {}
    if isinstance(data, dict):
        unset: list[RecipeError] = []
        typed = {str(at[1]) for at in given if at[:1] == ("data",) and len(at) > 1}
        filled = _Filling(data, set(data) if ("data",) in given else typed, unset, given)
        raw = {k: v if k == "data" else filled.of(v, (k,)) for k, v in raw.items()}
        if unset:
            raise RecipeError.together(unset, where)
    recipe = validate(Recipe, raw, str(where))
    elsewhere: list[str] = []
    if isinstance(where, Path):
        recipe, elsewhere = resolved(recipe, where.parent, given)
    agreed = trust_remote_code or any(re.match(r"base(\.trust_remote_code)?=", setting) for setting in settings)
    if not agreed and recipe.base.trust_remote_code is not False:
        base = recipe.base.model_copy(update={"trust_remote_code": "asked"})
        recipe = recipe.model_copy(update={"base": base})
    return recipe, list(dict.fromkeys(elsewhere))


def validate_text(text: str, where: str) -> Recipe:
    """Return the recipe of a text in YAML, with its paths as they are.

    Raises:
        RecipeError: it is none.
    """
    return validate(Recipe, parse(text), where)


def load_run_recipe(run: Path, *, trust_remote_code: bool = False) -> Recipe:
    """Read the recipe that a run wrote into its folder; ``trust_remote_code`` as in `load_recipe`.

    Raises:
        FileError: there is none, since no run was started there, or it is unreadable.
        RecipeError: it is none.
    """
    if not (reachable(run) / "recipe.yaml").is_file():
        raise no_run(run, "recipe.yaml")
    return _load(run / "recipe.yaml", (), trust_remote_code)[0]


def no_run(run: Path, missing: str, needed: str = "run") -> FileError:
    """Return the error of a folder that is not what is needed, a run; ``missing`` is the file that it lacks."""
    fix = "give the folder that tangora run wrote"
    if not run.exists() and (reference := hub_reference(str(run))) is not None:
        revision = f" --revision {reference.revision}" if reference.revision else ""
        some = f" --include '{reference.subfolder}/*'" if reference.subfolder else ""
        place = reference.repository.partition("/")[2]
        fetch = f"hf download {reference.repository}{revision}{some} --local-dir {place}"
        fix = f"a run is not fetched: download it first, for example by {fetch}, and give that folder"
    return FileError(f"not a {needed}: {missing} is missing", where=run, fix=fix)


def _read(source: str | Path) -> tuple[str, str | Path]:
    path = reachable(source)
    if path.is_file() or "/" in str(source) or path.suffix in {".yaml", ".yml"}:
        try:
            return path.read_text(encoding="utf-8"), path
        except (OSError, UnicodeDecodeError) as cause:
            raise FileError(f"the recipe cannot be read ({cause})", where=path, fix="check the path") from cause
    return bundled_text(str(source)), f"recipe {source}"


def _apply(raw: dict[str, Any], setting: str) -> Location:
    """Change one key, and return its location."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError("a setting is key.path=value", got=setting, where="--set")
    try:
        value = parse(text)
    except ValueError as cause:
        raise RecipeError("the value of a setting must be YAML", got=text, where=f"--set {key}") from cause
    node: Any = raw
    *parents, last = key.split(".")
    if parents == ["executor"] and isinstance(raw.get("executor"), str):
        raw["executor"] = {"name": raw["executor"]}  # its short form
    at: list[str | int] = []
    for part in parents:
        at.append(_index(node, part, setting) if isinstance(node, list) else part)
        node = _child(node, part, setting)
    at.append(_index(node, last, setting) if isinstance(node, list) else last)
    if not isinstance(node, list | dict):
        raise RecipeError("a setting must lead into a mapping or a list", got=setting, where="--set")
    cast(Any, node)[at[-1]] = value
    return tuple(at)


def _child(node: Any, part: str, setting: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, setting)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise RecipeError("a setting must lead into a mapping or a list", got=setting, where="--set")


def _index(node: list[Any], part: str, setting: str) -> int:
    if part.isdigit() and int(part) < len(node):
        return int(part)
    for i, item in enumerate(node):
        if isinstance(item, dict) and part in (item.get("name"), item.get("method")):
            return i
    raise RecipeError(f"no item {part!r} in this list", got=setting, where="--set", fix=f"it has {len(node)} items")


@dataclass(frozen=True)
class _Filling:
    """Fills the folders of ``data`` into texts.

    Attributes:
        data: key -> folder.
        typed: keys that are given on the command line.
        unset: receives an error for each key that has no value.
        given: receives the locations of texts that contain a folder from the command line.
    """

    data: Mapping[str, Any]
    typed: set[str]
    unset: list[RecipeError]
    given: set[Location]

    def of(self, value: Any, at: Location) -> Any:
        """Return a value with the folders filled in."""
        if isinstance(value, dict):
            return {k: self.of(v, (*at, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self.of(v, (*at, i)) for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value
        return re.sub(r"\$\{data\.([A-Za-z0-9_]+)\}", lambda match: self._folder(match.group(1), at), value)

    def _folder(self, key: str, at: Location) -> str:
        if not self.data.get(key):
            what, fix = f"data.{key} is not set", f"give it with --set data.{key}=FOLDER"
            if not any(error.what == what for error in self.unset):
                self.unset.append(RecipeError(what, where=".".join(map(str, at)), fix=fix))
        if key in self.typed:
            self.given.add(at)
        return str(self.data.get(key))
