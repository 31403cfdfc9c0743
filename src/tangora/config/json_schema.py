"""A JSON Schema of recipes, for editors that complete and check YAML while it is written. No torch.

It is as strict as a schema can be: the keys of ``base`` and ``tasks`` are those of the family, those of a mode are
those of its ``train``, and so on. What depends on several values, such as whether names differ, `load_recipe` checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tangora.config.mode import ModeConfig
from tangora.config.schema import Recipe
from tangora.config.settings import LoraSettings, TrainingSettings
from tangora.support.seams import EXECUTORS, FAMILIES, METRICS, MODES, ROUTERS, SEARCHES, SPACES

__all__ = ["DIALECT", "recipe_schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""The dialect of the schema; its ``unevaluatedProperties`` lets another key decide which keys there are."""

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """Return the JSON Schema of a recipe, with the members of installed plug-ins.

    >>> sorted(recipe_schema()["required"])
    ['base', 'name', 'tasks']
    """
    classes: list[type[BaseModel]] = list(
        dict.fromkeys([Recipe, LoraSettings, TrainingSettings, ModeConfig, *_classes()])
    )
    refs, shared = models_json_schema([(one, "validation") for one in classes])
    defs: dict[str, Schema] = shared["$defs"]
    names = {one: _name(refs[one, "validation"]) for one in classes}
    for shape in defs.values():
        _plainly(shape)
    recipe = defs.pop(names[Recipe])
    known = _Known(names, defs)
    own = recipe["properties"]
    own["base"] = {**_described(own["base"]), "type": "object", "required": ["family"]}
    own["base"]["properties"] = {"family": {"enum": list(FAMILIES)}}
    own["tasks"] = {**_described(own["tasks"]), "type": "array", "minItems": 1}
    own["modes"]["additionalProperties"] = _mode(known)
    own["executor"] = _executor(known)
    recipe["allOf"] = [_of_family(name, known) for name in FAMILIES]
    _entry(defs["FusionEntry"], known)
    return {"$schema": DIALECT, **_untitled(recipe), "$defs": _untitled(defs)}


@dataclass(frozen=True)
class _Known:
    """The definitions of classes, by their names in the schema."""

    names: Mapping[type[BaseModel], str]
    defs: Mapping[str, Schema]

    def ref(self, model: type[BaseModel]) -> Schema:
        return {"$ref": f"#/$defs/{self.names[model]}"}

    def properties(self, model: type[BaseModel], *, without: Sequence[str] = ()) -> Schema:
        found: Schema = self.defs[self.names[model]].get("properties", {})
        return {key: shape for key, shape in found.items() if key not in without}


def _classes() -> Iterable[type[BaseModel]]:
    for family in FAMILIES.all().values():
        yield from (family.base_settings, family.task_settings)
    for registry in (MODES, SEARCHES, ROUTERS, EXECUTORS):
        yield from (member.settings for member in registry.all().values())


def _name(ref: Mapping[str, Any]) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _plainly(shape: Schema) -> None:
    """Shorten a class's description to its summary, and list the members that a key may name."""
    if "description" in shape:
        shape["description"] = " ".join(shape["description"].split("\n\n")[0].split())
    own: Schema = shape.get("properties", {})
    if {"source", "metric", "metrics"} <= own.keys():
        several: Schema = {"type": "array", "items": {"enum": list(METRICS)}, "minItems": 1}
        own["metric"] = {**_described(own["metric"]), "enum": list(METRICS)}
        own["metrics"] = {**_described(own["metrics"]), "anyOf": [several, {"type": "null"}]}
    if "spaces" in own:
        own["spaces"]["items"] = {"enum": list(SPACES)}


def _described(shape: Mapping[str, Any]) -> Schema:
    return {key: shape[key] for key in ("default", "description") if key in shape}


def _untitled(shape: Any) -> Any:
    """Return the schema without the titles that pydantic makes of names."""
    if isinstance(shape, list):
        return [_untitled(part) for part in shape]
    if not isinstance(shape, dict):
        return shape
    # A key called title has a schema, and a title is a text.
    return {key: _untitled(part) for key, part in shape.items() if key != "title" or not isinstance(part, str)}


def _of_family(name: str, known: _Known) -> Schema:
    """If ``base.family`` is this one: its keys of ``base`` and ``tasks``."""
    family = FAMILIES.get(name)
    base = {"properties": {"family": {"const": name}}, "required": ["family"]}
    tasks = {"items": known.ref(family.task_settings)}
    then = {"properties": {"base": known.ref(family.base_settings), "tasks": tasks}}
    return {"if": {"properties": {"base": base}, "required": ["base"]}, "then": then}


def _mode(known: _Known) -> Schema:
    """A mode: the keys of its ``train``, by default those of ``lora``; older recipes name some by ``linearize``."""
    changed = {"lora": known.ref(LoraSettings), "training": known.ref(TrainingSettings)}
    linearize = {"linearize": {"enum": ["none", "module", "model"], "description": "in older recipes"}}
    of_given = {key: known.properties(ModeConfig)[key] for key in ("experts", "same_base")}
    of_none: Schema = {"experts": {"type": "object", "maxProperties": 0}, "same_base": {"const": False}}
    rules: list[Schema] = []
    for name in MODES:
        own = known.properties(MODES.get(name).settings)
        keys = {key: changed.get(key, shape) for key, shape in own.items()}
        keys = {"lora": {"type": "object", "maxProperties": 0}, "training": changed["training"], **keys}
        keys |= of_none if MODES.get(name).joint else of_given
        older = linearize if name in ("lora", "full") else {}  # with the aliases adapter and full
        given: Schema = {"properties": {"train": {"enum": ["lora", "adapter"] if name == "lora" else [name]}}}
        given |= {} if name == "lora" else {"required": ["train"]}
        rules.append({"if": given, "then": {"properties": {"train": True, **keys, **older}}})
    train = {"enum": [*MODES, "adapter"], "default": "lora", "description": "a registered mode"}
    return {"type": "object", "properties": {"train": train}, "allOf": rules, "unevaluatedProperties": False}


def _executor(known: _Known) -> Schema:
    """An executor's name, or its name and settings."""
    names, rules = {"enum": list(EXECUTORS)}, []
    for name in EXECUTORS:
        given: Schema = {"properties": {"name": {"const": name}}}
        given |= {} if name == "serial" else {"required": ["name"]}
        rules.append({"if": given, "then": {"properties": known.properties(EXECUTORS.get(name).settings)}})
    whole = {"type": "object", "properties": {"name": names}, "allOf": rules, "unevaluatedProperties": False}
    return {"description": "where jobs are done; changes no result", "anyOf": [names, whole]}


def _entry(shape: Schema, known: _Known) -> None:
    """Let the search or the router of an entry decide its further keys, which may be beside it too."""
    own = shape["properties"]
    named = {"type": "object", "properties": {"name": {"enum": list(SEARCHES)}}, "required": ["name"]}
    own["search"] = {**_described(own["search"]), "anyOf": [{"enum": list(SEARCHES)}, named, {"type": "null"}]}
    own["route"] = {**_described(own["route"]), "type": ["object", "null"]}
    rules: list[Schema] = []
    for name in SEARCHES:
        keys = known.properties(SEARCHES.get(name).settings, without=("name",))
        of = {"type": "object", "properties": {"name": {"const": name}}, "required": ["name"]}
        given = {"properties": {"search": {"anyOf": [{"const": name}, of]}}, "required": ["search"]}
        rules.append({"if": given, "then": {"properties": {**keys, "search": _settings(name, keys)}}})
    for name in ROUTERS:
        keys = known.properties(ROUTERS.get(name).settings, without=("name",))
        given = {"properties": {"method": {"const": name}}, "required": ["method"]}
        rules.append({"if": given, "then": {"properties": {**keys, "route": _settings(name, keys)}}})
    shape.pop("additionalProperties", None)
    shape |= {"allOf": rules, "unevaluatedProperties": False}


def _settings(name: str, keys: Schema) -> Schema:
    """A member's name, nothing, or its settings, and no other key."""
    properties = {"name": {"const": name}, **keys}
    return {
        "anyOf": [
            {"const": name},
            {"type": "null"},
            {"type": "object", "properties": properties, "additionalProperties": False},
        ]
    }
