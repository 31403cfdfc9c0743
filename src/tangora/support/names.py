"""Names for folders: those that tell several apart, and the one that the Hub's cache keeps in a path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

__all__ = ["hub_name", "names_of", "numbered", "snapshot_of"]


def snapshot_of(path: PurePath) -> PurePath | None:
    """Return ``…/models--org--name/snapshots/<revision>`` if a path is that, or leads into it; None otherwise.

    >>> snapshot_of(PurePath("hub/models--org--chat/snapshots/0123/checkpoint-500")).as_posix()
    'hub/models--org--chat/snapshots/0123'
    """
    for place in (path, *path.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            return place
    return None


def hub_name(path: str | os.PathLike[str]) -> str | None:
    """Return the Hub's name of a folder in its cache, with a subfolder's path after it; None for another folder.

    >>> hub_name("hub/models--org--chat/snapshots/0123/checkpoint-500")
    'org/chat/checkpoint-500'
    """
    place = PurePath(path)
    snapshot = snapshot_of(place)
    if snapshot is None:
        return None
    model = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/")
    return "/".join([model, *place.relative_to(snapshot).parts])


def names_of(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a name for each path: its last part, preceded by as many others as tell it apart from the rest.

    A path in the Hub's cache consists of the model's name and what follows the revision. Paths that are equal are
    numbered.

    >>> names_of(["run1/checkpoint-500", "run2/checkpoint-500", "sst2"])
    ['run1/checkpoint-500', 'run2/checkpoint-500', 'sst2']
    >>> names_of(["hub/models--org--chat/snapshots/0123", "sst2", "sst2"])
    ['chat', 'sst2', 'sst2 (2)']
    """
    places = [Path(os.path.abspath(path)) for path in paths]
    parts = [_parts(place) for place in places]
    owners = Counter(dict(zip(places, parts, strict=True)).values())  # above 1: two revisions of a model
    parts = [part if owners[part] == 1 else place.parts[1:] for place, part in zip(places, parts, strict=True)]
    different = dict.fromkeys(parts)
    lengths = dict.fromkeys(different, 1)
    while True:
        named = {one: "/".join(one[-length:]) for one, length in lengths.items()}
        seen = Counter(named.values())
        longer = [one for one, length in lengths.items() if seen[named[one]] > 1 and length < len(one)]
        if not longer:
            break
        for one in longer:
            lengths[one] += 1
    return numbered([named[one] for one in parts])


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names with a number after every repetition.

    >>> numbered(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: Counter[str] = Counter()
    given = set(names)
    result = []
    for name in names:
        seen[name] += 1
        unique = name
        while seen[name] > 1 and unique in given:
            unique = f"{name} ({seen[name]})"
            seen[name] += unique in given
        given.add(unique)
        result.append(unique)
    return result


def _parts(place: Path) -> tuple[str, ...]:
    known = hub_name(place)
    return tuple(known.split("/")) if known is not None else place.parts[1:] or place.parts
