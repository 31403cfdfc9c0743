"""Write files completely or not at all, and turn the errors of reading them into ones that say what to do.

Every output of Tangora goes through `atomic_dir` or `atomic_file`: it is made in a scratch folder beside its place,
synced, and renamed (`publishing`). A killed process leaves at worst a hidden ``.NAME.tmp-*`` folder, which the next
writer of the same place removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import FileError, OutputError, TangoraError
from tangora.support.json_text import parse_json
from tangora.support.publishing import in_scratch, publish, scratch_beside
from tangora.support.records import files_in, refuse_foreign

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "atomic_dir",
    "atomic_file",
    "digest",
    "file_digest",
    "inside",
    "list_files",
    "reachable",
    "read_json",
    "read_safetensors",
    "refuse_existing",
    "refuse_output",
    "write_json",
    "write_safetensors",
    "write_text",
    "writing",
]


def digest(value: Any) -> str:
    """Return the sha-256 (hex) of a JSON-serializable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()
    return hashlib.sha256(text).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the sha-256 (hex) of a file's bytes, read a few megabytes at a time."""
    total = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def refuse_existing(
    path: str | os.PathLike[str], overwrite: bool, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse an output that would replace something, unless ``overwrite``; links, devices and inputs always stay.

    Args:
        path: the output. An empty folder counts as nothing.
        overwrite: it may replace an earlier output.
        inputs: files or folders; the output must neither be nor contain one.

    Raises:
        OutputError: with what is in the way.
    """
    path = Path(path)
    with writing(path):
        if _is_special(path):
            raise OutputError("the output is a link or a device", where=path, fix="name a place of its own by --out")
        if path.is_dir() and not any(path.iterdir()):
            return
        if os.path.lexists(path):
            home = path.resolve()
            for place in map(Path, inputs):
                if place.exists() and home in (place.resolve(), *place.resolve().parents):
                    what = "the output is an input, or contains it"
                    raise OutputError(what, got=place, where=path, fix="choose another --out")
        if path.exists() and not overwrite:
            raise OutputError("the output exists", where=path, fix="choose another --out, or pass --overwrite")


def _is_special(path: Path) -> bool:
    """Return whether a path is there and is neither a regular file nor a folder: a link, a device, a pipe, a socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def refuse_output(
    folder: str | os.PathLike[str], overwrite: bool, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse an output folder before anything is computed: as `refuse_existing`, or if it holds files of others."""
    refuse_existing(folder, overwrite, inputs)
    refuse_foreign(Path(folder))


def list_files(folder: Path, record: str) -> None:
    """Write the names of a folder's files into its record, for `files_of`."""
    names = [name for name in files_in(folder) if name != record]
    write_json(folder / record, {**read_json(folder / record), "files": names})


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str], *, overwrite: bool = True, record: str | None = None) -> Iterator[Path]:
    """Provide a folder to fill, which appears at ``path`` when the block ends, and is removed if it raises.

    In a folder that this process is making it is filled in its place, and must be empty: all of it is published as a
    whole. A scratch folder in a scratch folder would be left behind by a kill.

    Args:
        path: the place of the folder.
        overwrite: replace what is there.
        record: the file of the folder that lists its files, one of `RECORDS`. With it, ``overwrite`` replaces only what
            Tangora has written; without it, the place is Tangora's own (a cache).

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is false, holds what must stay, or cannot be written.
    """
    path = Path(path)
    if in_scratch(path):
        with writing(path):
            refuse_existing(path, overwrite=False)  # an empty folder is nothing
            path.mkdir(parents=True, exist_ok=True)
            yield path
            if record is not None:
                list_files(path, record)
        return
    with writing(path), scratch_beside(path) as made:  # first: it puts back what a killed process has moved aside
        refuse_existing(path, overwrite)
        made.mkdir()
        yield made
        if record is not None:
            refuse_foreign(path)
            list_files(made, record)
        publish(made, path, overwrite=overwrite)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Provide a path to write, which replaces ``path`` when the block ends, and is removed if it raises.

    In a folder that this process is making the file is written in its place: the folder is published as a whole.
    """
    path = Path(path)
    if in_scratch(path):
        with writing(path):
            yield path
        return
    with writing(path), scratch_beside(path) as made:
        refuse_existing(path, overwrite)
        yield made
        publish(made, path, overwrite=overwrite)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def reachable(path: str | os.PathLike[str], error: type[TangoraError] = FileError, *, expand: bool = False) -> Path:
    """Return a path that is read next, after asking the system whether it can be; it need not exist.

    Args:
        path: a file or a folder.
        error: the class of the errors.
        expand: ``~`` at its start is a home folder, as in a shell.

    Raises:
        FileError, or the ``error``: a name too long, a folder that may not be entered, an unknown user's ``~``.
    """
    try:
        place = Path(path).expanduser() if expand else Path(path)
        place.exists()
    except (OSError, RuntimeError, ValueError) as cause:  # RuntimeError: no such user; ValueError: a null byte
        what = getattr(cause, "strerror", None) or " ".join(str(cause).split())
        fix = "check the path, and the permissions of the folders on it"
        raise error(f"cannot be read ({what})", where=str(path)[:200], fix=fix) from cause
    return place


def inside(folder: Path, name: str) -> Path:
    """Return the path of the file ``name`` in ``folder``; refuse it if it lies elsewhere.

    A link may lead out of the folder in one case: in the Hub's cache, ``snapshots/<revision>/`` and its subfolders link
    to ``blobs/`` beside it.

    Raises:
        FileError: the name is a path, or the file is missing or a link that leads out.
    """
    plain = name == os.path.basename(name) and name not in ("", ".", "..") and "\\" not in name and "\0" not in name
    if not plain:
        raise FileError("a file outside the folder", got=name, where=folder, fix="name only files beside it")
    path = folder / name
    try:
        name.encode()
        home, target = folder.resolve(), path.resolve()
    except UnicodeEncodeError as cause:  # half of a surrogate pair, which JSON can spell
        raise FileError("a name that no file can have", got=name, where=folder, fix="correct the name") from cause
    except (OSError, RuntimeError) as cause:  # a link to itself
        raise FileError("a link that leads nowhere", where=path, fix="copy the file in its place") from cause
    allowed = [home]
    for place in (home, *home.parents):
        if place.parent.name == "snapshots":  # the Hub's cache keeps its files in blobs/ and links to them
            allowed.append(place.parent.parent / "blobs")
    if target.parent not in allowed:
        raise FileError("a link that leads out of the folder", where=path, fix="copy the file in its place")
    if not target.is_file():
        raise FileError("file not found", where=path, fix="copy the folder again, all of its files")
    return path


def read_json(path: str | os.PathLike[str], error: type[TangoraError] = FileError) -> dict[str, Any]:
    """Read a JSON object; raise an ``error`` if the file is missing, unreadable, or not an object."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = parse_json(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise error("file not found", where=path, fix="check the path") from None
    except (OSError, ValueError) as cause:  # ValueError: not UTF-8, not JSON, too deep, half a surrogate pair
        raise error(f"not readable as JSON ({str(cause)[:200]})", where=path, fix="write the file again") from cause
    if not isinstance(value, dict):
        raise error("expected a JSON object", got=type(value).__name__, where=path, fix="write the file again")
    return value


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file; never a pickle.

    Raises:
        FileError: the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError  # deferred: imports torch
    from safetensors.torch import load_file  # deferred: imports torch

    try:
        return load_file(path)
    except FileNotFoundError:
        raise FileError("file not found", where=path, fix="check the path") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as cause:  # torch: a shape beyond 64 bits
        raise FileError(
            f"not readable as safetensors ({cause})", where=path, fix="the file is truncated or corrupt: copy it again"
        ) from cause


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (made contiguous, keys sorted) to ``path``; use inside `atomic_dir`."""
    from safetensors.torch import save_file  # deferred: imports torch

    save_file({k: tensors[k].contiguous() for k in sorted(tensors)}, path, metadata=dict(metadata or {"format": "pt"}))
    path.chmod(0o666 & ~_umask())  # it makes files that only their owner may read


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors while ``path`` is written into `OutputError`."""
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path) from cause
        final, named = _final(path), cause.filename
        at = "" if named is None or _final(Path(os.fsdecode(named))) == final else f": {named}"
        raise OutputError(
            f"cannot be written ({cause.strerror or cause}{at})", where=final, fix="choose another --out"
        ) from cause
    except Exception as cause:  # safetensors and torch report a full disk in exceptions of their own
        if _FULL.get(type(cause).__name__, _NEVER).search(str(cause)):
            raise _disk_full(path) from cause
        raise


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # JSON can spell half of a pair, which no file can hold
_NEVER = re.compile(r"(?!)")
_FULL = {
    "SafetensorError": re.compile("os error 28|No space left"),
    "RuntimeError": re.compile(r"iostream error|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"),
}


def _disk_full(path: Path) -> OutputError:
    return OutputError("the disk is full", where=_final(path), fix="free some space and run the same command again")


def _final(path: Path) -> Path:
    """Return the place that a path in a scratch folder will get."""
    return Path(*(part for part in path.parts if not re.fullmatch(r"\..+\.(tmp-[^.]+|fusing)", part)))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
