"""What a string names on the Hub: ``org/name``, with a subfolder and a revision if need be; and where a path is from.

Nothing is looked up here: a name is parsed, and the layout of the Hub's cache is read from a path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from tangora.support.names import hub_name, snapshot_of

__all__ = ["HubReference", "hub_name_of", "hub_reference", "shown_source", "source_of"]

_PART = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCAL = ("/", ".", "~")


@dataclass(frozen=True)
class HubReference:
    """A folder of a repository on the Hub.

    Attributes:
        repository: ``org/name``.
        subfolder: a path in it; empty for all of it.
        revision: a branch, a tag or a commit; None for the default branch.
    """

    repository: str
    subfolder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        place = "/".join(filter(None, [self.repository, self.subfolder]))
        return place if self.revision is None else f"{place}@{self.revision}"

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, whose content never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def hub_reference(source: str | os.PathLike[str]) -> HubReference | None:
    """Return what a string names on the Hub; None if it is, or looks like, a path.

    A path that exists always wins. These are never looked up: a `pathlib.Path`; a string that begins with ``/``, ``.``
    or ``~``, or has a backslash or a colon; one with a first part that is a folder here; one that ends in
    ``.safetensors``.

    >>> hub_reference("org/chat/checkpoint-500@v1.0")
    HubReference(repository='org/chat', subfolder='checkpoint-500', revision='v1.0')
    >>> hub_reference("./org/chat"), hub_reference("chat"), hub_reference("org/style.safetensors")
    (None, None, None)
    """
    if not isinstance(source, str) or "\0" in source or _is_local(source):
        return None
    return hub_name_of(source)


def hub_name_of(text: str) -> HubReference | None:
    """Return what a string names on the Hub, whatever there is here; None if it is no such name.

    >>> hub_name_of("org/chat@v1").revision
    'v1'
    """
    name, at, revision = text.partition("@")
    owner, *rest = name.split("/")
    valid = bool(rest) and all(_is_name(part) for part in (owner, rest[0])) and not rest[0].endswith(".git")
    if not valid or any(part in ("", ".", "..") for part in rest) or (at and not _is_revision(revision)):
        return None
    return HubReference(f"{owner}/{rest[0]}", "/".join(rest[1:]), revision if at else None)


def _is_local(text: str) -> bool:
    if text.startswith(_LOCAL) or text.endswith(".safetensors") or any(sign in text for sign in ("\\", ":")):
        return True
    try:
        return os.path.lexists(text) or os.path.lexists(text.partition("/")[0])
    except (OSError, ValueError):  # a name too long
        return True


def _is_name(part: str) -> bool:
    return _PART.fullmatch(part) is not None and "--" not in part and ".." not in part


def _is_revision(text: str) -> bool:
    return re.fullmatch(r"[^\s~^:?*\[\\@]{1,200}", text) is not None and ".." not in text and text.strip("/") == text


def source_of(path: str | os.PathLike[str]) -> str | None:
    """Return ``org/name[/subfolder]@commit`` of a path in the Hub's cache, which names it anywhere; None for another.

    >>> source_of("hub/models--org--chat/snapshots/0123/checkpoint-500")
    'org/chat/checkpoint-500@0123'
    """
    place = PurePath(os.path.abspath(path))
    name, snapshot = hub_name(place), snapshot_of(place)
    return None if name is None or snapshot is None else f"{name}@{snapshot.name}"


def shown_source(path: Path) -> str:
    """Return a path for people: in the Hub's cache, what it is called there, with the beginning of the commit."""
    source = source_of(path)
    if source is None:
        return str(path)
    name, _, commit = source.rpartition("@")
    return f"{name}@{commit[:12]}"
