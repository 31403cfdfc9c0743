"""Every key of a recipe, with its type, default and description, as the classes that read recipes have them. No torch.

The keys of ``base`` and ``tasks`` depend on the family, those of a mode on its ``train``, those of an entry of the
comparison on its search or router, those of ``executor`` on its name. `Key.of` says for which of them a key is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from tangora.config.schema import Recipe
from tangora.errors import ArgumentError
from tangora.support.registry import Registry
from tangora.support.seams import EXECUTORS, FAMILIES, MODES, ROUTERS, SEARCHES
from tangora.support.validation import did_you_mean

__all__ = ["Key", "keys_below", "recipe_keys", "type_text"]

Kind = Literal["family", "mode", "search", "router", "executor"]

_MODE = "modes.NAME"
_ENTRY = "fusion.methods[]"


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        path: such as ``tasks[].limit``; ``[]`` stands for every item of a list, ``NAME`` for a name of your own.
        type: of its values, in words, with their bounds.
        default: as it is written in a recipe; None if the key has to be given, or if it has keys of its own.
        required: whether it has to be given.
        description: what it means.
        of: the kind of what it belongs to, such as ``family``, if it is not in every recipe.
        names: those that have it, such as ``("causal-lm",)``.
    """

    path: str
    type: str
    default: str | None
    required: bool
    description: str
    of: Kind | None = None
    names: tuple[str, ...] = ()


def recipe_keys(*, family: str | None = None, mode: str | None = None) -> list[Key]:
    """Return every key, in the order of a recipe.

    Args:
        family: leave out the keys of other families.
        mode: leave out the keys of other values of a mode's ``train``.

    Raises:
        ArgumentError: there is no such family or mode.

    >>> [key.path for key in recipe_keys(family="causal-lm") if key.path.endswith("packing")]
    ['base.packing']
    """
    chosen = {"family": _one(FAMILIES, family), "mode": _one(MODES, mode)}
    merged: dict[tuple[Any, ...], Key] = {}
    for key in _all():
        same = (key.path, key.type, key.default, key.description, key.of)
        earlier = merged.get(same)
        merged[same] = replace(earlier, names=(*earlier.names, *key.names)) if earlier else key
    found = []
    for key in map(_shared, merged.values()):
        wanted = chosen.get(key.of or "")
        if wanted is None:
            found.append(key)
        elif wanted in key.names:
            found.append(replace(key, of=None, names=()))
    return found


def keys_below(path: str, keys: Sequence[Key]) -> list[Key]:
    """Return the keys at a path and below it.

    Args:
        path: with or without numbers, brackets and names, such as ``tasks``, ``tasks.0.source`` or ``modes.mine.lora``.
        keys: from `recipe_keys`.

    Raises:
        ArgumentError: there is none; the nearest is named.

    >>> [key.path for key in keys_below("machine.thread", recipe_keys())]
    Traceback (most recent call last):
        ...
    tangora.errors.ArgumentError: no such key, got 'machine.thread' at recipe keys. Did you mean 'machine.threads'?
    """
    wanted, parts = _parts(path), [_parts(key.path) for key in keys]
    of_modes = {one[2] for one in parts if one[1:2] == ["NAME"] and len(one) > 2} - set(MODES)
    nameless = len(wanted) > 1 and wanted[0] == "modes" and wanted[1] in of_modes
    found = [key for key, one in zip(keys, parts, strict=True) if _leads(wanted, one, nameless)]
    if not found:
        fix = did_you_mean(path, list(dict.fromkeys(key.path for key in keys)), brief=True)
        shown = fix if len(fix) < 200 else "tangora recipe keys lists all of them"
        raise ArgumentError("no such key", got=path, where="recipe keys", fix=shown)
    return found


def _parts(path: str) -> list[str]:
    parts = path.replace("[]", "").split(".")
    return [part for part in parts if part and not part.isdigit()]


def _leads(wanted: Sequence[str], parts: Sequence[str], nameless: bool) -> bool:
    """Whether a path begins with the wanted parts; the name of a mode may be any, or left out."""
    if parts[1:2] == ["NAME"]:
        parts = [parts[0], *([] if nameless else wanted[1:2]), *parts[2:]]
    return list(parts[: len(wanted)]) == list(wanted)


def _one(registry: Registry, name: str | None) -> str | None:
    if name is not None and name not in registry:
        fix = did_you_mean(name, list(registry))
        raise ArgumentError(f"no such {registry.kind}", got=name, where=f"--{registry.kind}", fix=fix)
    return name


def _shared(key: Key) -> Key:
    """Return the key without the names of its kind if all of them have it."""
    registries = {"family": FAMILIES, "mode": MODES, "search": SEARCHES, "router": ROUTERS, "executor": EXECUTORS}
    return replace(key, of=None, names=()) if key.of and set(key.names) == set(registries[key.of]) else key


def _all() -> Iterator[Key]:
    for key in _of_model(Recipe, ""):
        if not key.path.startswith(("base.", "tasks[].")):
            yield key
        if key.path in ("base", "tasks"):
            yield from _of_families(key.path)
        elif key.path == f"{_MODE}.training":
            yield from _of_seam(MODES, "mode", _MODE, without=("lora", "training"))
        elif key.path == f"{_ENTRY}.search.name":
            yield from _of_seam(SEARCHES, "search", f"{_ENTRY}.search", without=("name",))
        elif key.path == f"{_ENTRY}.route.name":
            yield from _of_seam(ROUTERS, "router", f"{_ENTRY}.route", without=("name",))
        elif key.path == "executor.name":
            yield from _of_seam(EXECUTORS, "executor", "executor")


def _of_families(section: str) -> Iterator[Key]:
    """The keys of ``base`` or ``tasks``, those of every family first."""
    prefix, settings = ("base.", "base_settings") if section == "base" else ("tasks[].", "task_settings")
    of = {name: list(_of_model(getattr(FAMILIES.get(name), settings), prefix)) for name in FAMILIES}
    order = dict.fromkeys(key.path for keys in of.values() for key in keys)
    for path in order:
        for name, keys in of.items():
            yield from (replace(key, of="family", names=(name,)) for key in keys if key.path == path)


def _of_seam(registry: Registry, kind: Kind, path: str, without: Sequence[str] = ()) -> Iterator[Key]:
    for name in registry:
        for key in _of_model(registry.get(name).settings, f"{path}."):
            if key.path.removeprefix(f"{path}.").split(".")[0] not in without:
                yield replace(key, of=kind, names=(name,))


def _of_model(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    """The keys of a class, each before those below it."""
    shape = _schema(model)
    needed = shape.get("required", ())
    for name, field in model.model_fields.items():
        value = _resolved(shape["properties"][name], shape.get("$defs", {}))
        nested = _nested(field.annotation)
        default = None
        if not nested and not field.is_required():
            default = _shown(field.get_default(call_default_factory=True, validated_data={}))
        text = " ".join((field.description or "").split())
        yield Key(f"{prefix}{name}", type_text(value), default, name in needed, text)
        if nested:
            yield from _of_model(nested, f"{prefix}{name}{_inside(field.annotation)}.")


@cache
def _schema(model: type[BaseModel]) -> Mapping[str, Any]:
    return model.model_json_schema()


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The class of settings in an annotation, be it in a list, in a mapping or optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _nested(part))), None)


def _inside(annotation: Any) -> str:
    """What leads from a key to those below it: nothing, an item, or a name."""
    if get_origin(annotation) in (list, dict):
        return "[]" if get_origin(annotation) is list else ".NAME"
    return next((found for part in get_args(annotation) if (found := _inside(part))), "")


def _resolved(shape: Any, known: Mapping[str, Any]) -> Any:
    """A JSON Schema with its references to classes replaced by ``object``."""
    if isinstance(shape, list):
        return [_resolved(part, known) for part in shape]
    if not isinstance(shape, Mapping):
        return shape
    if "$ref" in shape:
        return {"type": "object"}
    return {key: _resolved(part, known) for key, part in shape.items()}


_TYPES = {"integer": "int", "number": "number", "string": "text", "boolean": "true | false", "null": "null"}


def type_text(shape: Mapping[str, Any]) -> str:
    """Return the type of a JSON Schema in words.

    >>> type_text({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]})
    'int >= 1 | auto'
    >>> type_text({"type": "array", "items": {"enum": ["a", "b"]}})
    'list of (a | b)'
    """
    if "anyOf" in shape:
        return " | ".join(type_text(one) for one in shape["anyOf"])
    if "const" in shape or "enum" in shape:
        return " | ".join(map(str, shape.get("enum", [shape.get("const")])))
    kind = shape.get("type")
    if kind == "array":
        return f"list of {_grouped(type_text(shape.get('items', {})))}"
    if kind == "object":
        value = shape.get("additionalProperties")
        return f"mapping to {_grouped(type_text(value))}" if isinstance(value, Mapping) else "mapping"
    return _bounded(_TYPES.get(str(kind), "any value"), shape)


def _grouped(text: str) -> str:
    return f"({text})" if " | " in text else text


def _bounded(name: str, shape: Mapping[str, Any]) -> str:
    low, high = shape.get("minimum"), shape.get("maximum")
    above, below = shape.get("exclusiveMinimum"), shape.get("exclusiveMaximum")
    lowest = f"{low:g} <= " if low is not None else f"{above:g} < " if above is not None else ""
    highest = f" <= {high}" if high is not None else f" < {below}" if below is not None else ""
    if lowest and not highest:
        sign = ">=" if low is not None else ">"
        return f"{name} {sign} {low if low is not None else above}"
    return f"{lowest}{name}{highest}"


def _shown(value: Any) -> str:
    """Return a default as one writes it in a recipe."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shown(one)}' for key, one in value.items())}}}"
    return json.dumps(value) if isinstance(value, str) and (not value.strip() or "{" in value) else f"{value}"
