"""Paths in a recipe: which of its values are paths, and which file a relative one means. No torch.

A relative path means the file beside the recipe; if there is none, the one in the working directory. In memory a path
is relative to the working directory, or absolute. In the folder of a run it is relative to that folder, so that a
project that is moved as a whole, run and data, is found again.

A class of settings marks its paths by their types, `PathText` and `ModelText`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel

from tangora.support.seams import MODES

__all__ = ["Location", "ModelText", "PathText", "PlaceOf", "absolute", "below", "mapped", "places", "resolved"]


@dataclass(frozen=True)
class PlaceOf:
    """Marks a text as the path of a file or folder.

    Attributes:
        or_name: whether it may be something else, such as an id on the Hub, if there is no such folder.
    """

    or_name: bool = False


PathText: TypeAlias = Annotated[str, PlaceOf()]
"""The path of a file or a folder."""
ModelText: TypeAlias = Annotated[str, PlaceOf(or_name=True)]
"""The folder of a model, or its id on the Hub."""

Location: TypeAlias = tuple[str | int, ...]
"""Where a value is in a recipe: keys, and numbers of items."""
Change: TypeAlias = Callable[[str, PlaceOf, Location], str]
_M = TypeVar("_M", bound=BaseModel)


def mapped(model: _M, change: Change, at: Location = ()) -> _M:
    """Return the settings with every path in them changed.

    Args:
        model: settings, such as a recipe.
        change: path, its mark and its location -> the path in its place.
        at: the location of ``model``.
    """
    changed: dict[str, Any] = {}
    for name, annotation, value in _values(model):
        new = _changed(annotation, value, change, (*at, name))
        if new is not value:
            changed[name] = new
    return model.model_copy(update=changed) if changed else model


def places(model: BaseModel) -> list[tuple[Location, str]]:
    """Return every path in the settings, with its location."""
    found: list[tuple[Location, str]] = []

    def note(path: str, _: PlaceOf, at: Location) -> str:
        found.append((at, path))
        return path

    mapped(model, note)
    return found


def _values(model: BaseModel) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, type and value of every key; those that a mode adds have the types of its own class."""
    for name, field in type(model).model_fields.items():
        marked = next((one for one in field.metadata if isinstance(one, PlaceOf)), None)
        annotation = Annotated[field.annotation, marked] if marked else field.annotation
        yield name, annotation, getattr(model, name)
    more, train = model.model_extra or {}, getattr(model, "train", None)
    if more and isinstance(train, str) and train in MODES:
        own = MODES.get(train).settings.model_fields
        for name, value in more.items():
            yield name, own[name].annotation if name in own else None, value


def _changed(annotation: Any, value: Any, change: Change, at: Location) -> Any:
    """Return a value with its paths changed: the same object if there are none."""
    if isinstance(value, BaseModel):
        return mapped(value, change, at)
    if isinstance(value, str):
        mark = _mark(annotation)
        new = change(value, mark, at) if mark else value
        return value if new == value else new
    if isinstance(value, Mapping):
        inner = _inner(annotation, dict)
        items: Any = {key: _changed(inner, one, change, (*at, key)) for key, one in value.items()}
        return items if any(items[key] is not value[key] for key in value) else value
    if isinstance(value, list):
        inner = _inner(annotation, list)
        items = [_changed(inner, one, change, (*at, number)) for number, one in enumerate(value)]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _mark(annotation: Any) -> PlaceOf | None:
    """The mark of a type, be it optional."""
    if get_origin(annotation) is Annotated:
        return next((one for one in annotation.__metadata__ if isinstance(one, PlaceOf)), None)
    if get_origin(annotation) in (dict, list):
        return None
    return next((found for part in get_args(annotation) if (found := _mark(part))), None)


def _inner(annotation: Any, kind: type) -> Any:
    """The type of the values in a mapping or the items of a list, be it optional."""
    if get_origin(annotation) is kind:
        return get_args(annotation)[-1]
    return next((found for part in get_args(annotation) if (found := _inner(part, kind)) is not None), None)


def resolved(recipe: _M, folder: Path, given: Collection[Location] = ()) -> tuple[_M, list[str]]:
    """Return a recipe with its paths found, and those that were found in the working directory alone.

    Args:
        recipe: as it was read.
        folder: that of its file.
        given: locations of values that are not from the file but from the command line. They are looked for in the
            working directory first.
    """
    elsewhere: list[str] = []

    def find(path: str, mark: PlaceOf, at: Location) -> str:
        if not path or path.startswith("~") or Path(path).is_absolute():
            return path
        beside, here = folder / path, Path(path)
        typed = any(at[: len(one)] == one for one in given)
        if (typed and _exists(here)) or _same(beside, here):
            return path
        if _exists(beside):
            return _shown(beside)
        if _exists(here):
            elsewhere.append(path)
            return path
        return path if mark.or_name or typed else _shown(beside)

    return mapped(recipe, find), elsewhere


def below(recipe: _M, folder: Path) -> _M:
    """Return a recipe with its paths relative to a folder, as the file of a recipe in it has them."""

    def rewrite(path: str, mark: PlaceOf, _: Location) -> str:
        if not path or path.startswith("~") or Path(path).is_absolute() or (mark.or_name and not _exists(Path(path))):
            return path
        try:
            return os.path.relpath(path, folder)
        except ValueError:  # on another drive
            return str(Path(path).absolute())

    return mapped(recipe, rewrite)


def absolute(recipe: _M) -> _M:
    """Return a recipe with absolute paths, for a process with another working directory."""

    def rewrite(path: str, mark: PlaceOf, _: Location) -> str:
        plain = not path or path.startswith("~") or (mark.or_name and not _exists(Path(path)))
        return path if plain else os.path.abspath(path)

    return mapped(recipe, rewrite)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or one with a null byte: refused when it is read
        return False


def _same(one: Path, other: Path) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


def _shown(path: Path) -> str:
    """A path relative to the working directory if it is below it, else an absolute one."""
    whole = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)
