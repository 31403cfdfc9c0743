"""Write files completely or not at all, and turn the errors of reading them into ones that say what to do.

Every output of Tangora goes through `atomic_dir` or `atomic_file`: it is written beside its final path under
a hidden name, synced, and renamed. A killed process leaves at worst a hidden ``.name.tmp-*`` folder,
which the next writer of the same path removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import FileError, OutputError, TangoraError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "atomic_dir",
    "atomic_file",
    "digest",
    "file_digest",
    "inside",
    "read_json",
    "read_safetensors",
    "refuse_existing",
    "write_json",
    "write_safetensors",
    "write_text",
    "writing",
]


def digest(value: Any) -> str:
    """Return the sha-256 (hex) of a JSON-serializable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the sha-256 (hex) of a file's bytes, read a few megabytes at a time."""
    total = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def refuse_existing(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise `OutputError` if ``path`` is a file or a folder that is not empty, and ``overwrite`` is false."""
    path = Path(path)
    exists = (path.is_dir() and any(path.iterdir())) or (path.exists() and not path.is_dir())
    if exists and not overwrite:
        raise OutputError("the output exists", where=path, fix="choose another --out, or pass --overwrite")


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Provide a folder to fill, which replaces ``path`` when the block ends and is removed if it raises.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is false, or it cannot be written.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            scratch.chmod(0o777 & ~_umask())
            yield scratch
            if path.exists():
                retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
                path.rename(retired / "old")
                scratch.rename(path)
                shutil.rmtree(retired, ignore_errors=True)
            else:
                scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Provide a temporary path to write, which replaces ``path`` when the block ends and is removed if it raises."""
    path = Path(path)
    refuse_existing(path, overwrite)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
        os.close(handle)
        scratch = Path(name)
        try:
            scratch.chmod(0o666 & ~_umask())
            yield scratch
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def inside(folder: Path, name: str) -> Path:
    """Return the path of the file ``name`` in ``folder``; refuse it if it lies elsewhere.

    A link may lead out of the folder in one case: in the Hub's cache, ``snapshots/<revision>/`` links to ``blobs/``
    beside it.

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
    if home.parent.name == "snapshots":  # the Hub's cache keeps its files in blobs/ and links to them
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise FileError("a link that leads out of the folder", where=path, fix="copy the file in its place")
    if not target.is_file():
        raise FileError("file not found", where=path, fix="copy the folder again, all of its files")
    return path


def read_json(path: str | os.PathLike[str], error: type[TangoraError] = FileError) -> dict[str, Any]:
    """Read a JSON object; raise an ``error`` if the file is missing, unreadable, or not an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error("file not found", where=path, fix="check the path") from None
    except (OSError, ValueError, RecursionError) as cause:  # ValueError: not UTF-8, not JSON, a number too long
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
        refused = (
            isinstance(cause, (PermissionError, NotADirectoryError, FileExistsError)) or cause.errno == errno.EROFS
        )
        if refused or (cause.filename and Path(cause.filename).parent == path.parent):  # the temporary path itself
            fix = "choose another --out"
            raise OutputError(f"cannot be written ({cause.strerror})", where=path, fix=fix) from cause
        raise
    except Exception as cause:  # safetensors and torch report a full disk in exceptions of their own
        if _FULL.get(type(cause).__name__, _NEVER).search(str(cause)):
            raise _disk_full(path) from cause
        raise


_NEVER = re.compile(r"(?!)")
_FULL = {
    "SafetensorError": re.compile("os error 28|No space left"),
    "RuntimeError": re.compile(r"iostream error|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"),
}


def _disk_full(path: Path) -> OutputError:
    final = Path(*(_final(part) for part in path.parts))
    return OutputError("the disk is full", where=final, fix="free some space and run the same command again")


def _final(name: str) -> str:
    """Return the name that a temporary path will get; one inside another is marked twice."""
    while marked := re.fullmatch(r"\.(.+)\.tmp-[^.]+", name):
        name = marked[1]
    return name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
