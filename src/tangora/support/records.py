"""Which files of a folder Tangora wrote: what its record lists, and what may be replaced.

``--overwrite`` removes the folder that it replaces. It must hold nothing else than an earlier output.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path, PurePosixPath

from tangora.errors import OutputError
from tangora.support.json_text import parse_json

__all__ = ["RECORDS", "files_in", "files_of", "refuse_foreign"]

RECORDS = ("tangora.json", "tangora_fusion.json")
"""Files in which a folder's own record says what it holds: an adapter's, and a full checkpoint's."""


def refuse_foreign(path: Path) -> None:
    """Refuse to replace a folder unless all that it holds was written by Tangora."""
    if not path.is_dir():
        if os.path.lexists(path):
            fix = "choose another --out"
            raise OutputError("a file is where the folder would be", where=path, fix=fix)
        return
    ours, there = files_of(path), files_in(path)
    if foreign := sorted(name for name in there if name not in ours):
        names = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        fix = "choose another --out, or remove it yourself"
        raise OutputError("--overwrite would remove files that Tangora did not write", got=names, where=path, fix=fix)


def files_of(folder: Path) -> Container[str]:
    """Return the files of a folder that Tangora has written: those that its record lists.

    A record of an earlier version lists none. Such a folder counts as Tangora's with all that adapters and checkpoints
    are made of.
    """
    for record in RECORDS:
        try:
            content = parse_json((folder / record).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or damaged
            continue
        listed = content.get("files") if isinstance(content, dict) else None
        return {str(name) for name in listed} | {record} if isinstance(listed, list) else _Usual()
    return ()


def files_in(folder: Path) -> list[str]:
    """Return the paths of all files, links and empty folders in a folder, relative to it, sorted, with ``/``."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        names = [*files, *links] if files or folders else ["."]
        found += [Path(os.path.relpath(Path(root, name), folder)).as_posix() for name in names]
    return sorted(name for name in found if name != ".")


class _Usual:
    """The names of files that adapters and checkpoints are made of."""

    def __contains__(self, name: object) -> bool:
        path = PurePosixPath(str(name))
        parts = path.suffix in {".safetensors", ".json", ".txt", ".model", ".jinja", ".csv"} or path.name == "README.md"
        return parts and path.parent.as_posix() in {".", "heads"}
