"""What differs between two recipes: that of a run, and the one that it is to go on with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tangora.config.places import Location, places
from tangora.config.recipe import Recipe

__all__ = ["changes", "moved"]


def moved(written: Recipe, recipe: Recipe) -> set[Location]:
    """Return the locations of paths that are no change: they lead to one file, or to one that was moved.

    A file was moved if it is not at its old path any more, and has its old name at the new one. Results depend on its
    contents, which a run compares anyway.
    """
    earlier = dict(places(written))
    return {at for at, path in places(recipe) if at in earlier and _is_moved(earlier[at], path)}


def _is_moved(old: str, new: str) -> bool:
    try:
        gone, there = not Path(old).exists(), Path(new).exists()
        same = there and not gone and Path(old).samefile(new)
    except (OSError, ValueError):
        return False
    return same or (gone and there and PurePath(old).name == PurePath(new).name)


def changes(old: Any, new: Any, *, moved: Collection[Location] = (), at: Location = (), named: str = "") -> list[str]:
    """Return the keys that differ, each with both values.

    Args:
        old: a recipe in Python's values.
        new: another one.
        moved: locations in ``new`` that are left out.
        at: the location of ``new``.
        named: the same with names in place of numbers, for people.

    >>> changes({"lora": {"r": 8}, "tasks": [{"name": "a"}]}, {"lora": {"r": 16}, "tasks": []})
    ['lora.r: 8 → 16', 'tasks.a: removed']
    """
    if at in moved or old == new:
        return []
    in_list = _has_settings(old) or _has_settings(new)
    if not in_list and not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [f"{named}: {_shown(old)} → {_shown(new)}"]
    one, other = (_named(old or []), _named(new or [])) if in_list else (old, new)
    numbers = {key: number if in_list else key for number, key in enumerate(other)}
    found = []
    for key in dict.fromkeys([*one, *other]):
        name = f"{named}.{key}" if named else str(key)
        if key not in one or key not in other:
            found.append(f"{name}: {'removed' if key in one else 'added'}")
        else:
            found += changes(one[key], other[key], moved=moved, at=(*at, numbers[key]), named=name)
    return found or ([f"{named}: in another order"] if list(one) != list(other) else [])


def _has_settings(value: Any) -> bool:
    """Whether a value is a list of mappings, such as tasks or methods."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _named(items: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the items by their names, or methods; several of one name are numbered."""
    found: dict[str, Mapping[str, Any]] = {}
    for number, one in enumerate(items):
        name = str(one.get("name") or one.get("method") or number)
        found[name if name not in found else f"{name}[{number}]"] = one
    return found


def _shown(value: Any, most: int = 60) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= most else f"{text[: most - 2]} …"
