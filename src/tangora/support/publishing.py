"""Publish files and folders: complete or not at all, in one step, and never over files of others.

An output is made in a scratch folder beside its place, on the same file system:

    .NAME.tmp-XXXXXXXX/          private (mode 0700), a name that cannot be foreseen, locked while its process lives
    .NAME.tmp-XXXXXXXX/.lock~    the file that is locked
    .NAME.tmp-XXXXXXXX/NAME      the output while it is written

When it is complete, its data are synced, it is renamed to its place, and the folder that holds it is synced. A folder
that it replaces is exchanged with it in the same step, and removed afterwards. After a kill the lock is gone: the next
writer of the same place removes the scratch folder. A locked one belongs to a live process and is left alone.

Linux and macOS rename without replacing, and exchange, in one system call. Elsewhere (and on file systems without
it) the old output is moved into the scratch folder first: a kill between the two renames leaves it there, and
the next writer puts it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tangora.errors import OutputError

__all__ = [
    "claimed",
    "discard",
    "in_scratch",
    "is_scratch",
    "making",
    "publish",
    "remove_claimed",
    "remove_stale_below",
    "scratch_beside",
    "start_writeback",
]

_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}
_LOCK, _OLD = (
    ".lock~",
    ".old~",
)  # in a scratch folder; _OLD: what was at the place, if it cannot be exchanged in one step
_LONGEST = 120  # characters of the name that a scratch folder shows; a name may have 255 bytes, and some are added


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Provide the place inside a new scratch folder at which the output ``path`` is to be made; remove both afterwards.

    Scratch folders that killed processes have left for the same output are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    folder, lock = _new_scratch(path)
    try:
        with making(folder):
            yield folder / path.name
    finally:
        remove_claimed(folder)
        _unlock(lock)


def publish(made: Path, path: Path, *, overwrite: bool) -> None:
    """Sync ``made``, which `scratch_beside` or a work folder holds, and rename it to ``path`` in one step.

    Args:
        made: a file or a folder on the file system of ``path``.
        path: its place. An empty folder there counts as nothing.
        overwrite: replace what is there. A folder is exchanged with it: it lies at ``made`` afterwards.

    Raises:
        OutputError: something is at ``path`` that must stay.
        OSError: the system's.
    """
    _sync(made)
    if made.is_dir() and overwrite and os.path.lexists(path):
        _exchange(made, path)
    elif made.is_dir():
        try:
            made.rename(path)  # replaces nothing but an empty folder
        except OSError as cause:
            if cause.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _exists(path) from cause
            raise
    elif overwrite:
        made.replace(path)
    else:
        _rename_new(made, path)
    _sync_one(path.parent)


def _locked(folder: Path) -> int | None:
    """Lock a folder that is no link and belongs to this user until `_unlock`, or the process's end.

    Returns:
        A handle of the folder's file ``lock``; None on a system without `fcntl`.

    Raises:
        BlockingIOError: another process holds the lock.
        FileNotFoundError: it is missing, or another process has just removed it.
        OSError: it is a link, no folder, or another user's.
    """
    if sys.platform == "win32":
        return None
    import fcntl  # deferred: Windows has none

    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(place).st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "belongs to another user", str(folder))
        handle = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=place)
    finally:
        os.close(place)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.lstat(folder / _LOCK)):
            raise BlockingIOError(errno.EAGAIN, "another process has made it again", str(folder))
    except BaseException:
        os.close(handle)
        raise
    return handle


def remove_claimed(folder: Path) -> None:
    """Remove a folder that this process has locked; the lock's file goes last, so that no one else enters before."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink()
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


def discard(work: Path) -> None:
    """Remove the work folder of an output that is complete (see `claimed`), unless another process has it."""
    try:
        handle = _locked(work)
    except OSError:  # none, live, or not ours
        return
    try:
        remove_claimed(work)
    finally:
        _unlock(handle)


@contextlib.contextmanager
def claimed(work: Path, out: Path) -> Iterator[None]:
    """Make a folder for what is made on the way to an output, which a later process goes on from, and lock it.

    Its name can be foreseen, so that the later process finds it: a link, or another user's folder, is refused.

    Raises:
        OutputError: another process has it, or it cannot be used.
    """
    handle = _claim(work, out)
    try:
        work.chmod(0o700)  # one that was there may have been open to others
        yield
    finally:
        _unlock(handle)


def _claim(work: Path, out: Path) -> int | None:
    while True:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            work.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(work):
                work.mkdir(mode=0o700, exist_ok=True)
        except OSError as cause:
            what = f"cannot be written ({cause.strerror}: {cause.filename})"
            raise OutputError(what, where=out, fix="choose another --out") from cause
        try:
            return _locked(work)
        except BlockingIOError as cause:
            raise OutputError("another process is writing this output", where=out, fix="wait for it to end") from cause
        except FileNotFoundError:  # a process that had it has just ended, and removed it
            continue
        except OSError as cause:
            what = f"{work.name}, for what is made on the way, cannot be used ({cause.strerror})"
            raise OutputError(what, where=out, fix=f"remove {work}, or choose another --out") from cause


def _unlock(handle: int | None) -> None:
    """Give a lock back."""
    if handle is not None:
        os.close(handle)


def in_scratch(path: Path) -> bool:
    """Whether a path lies in an output that this process is making: such a file is published with the whole."""
    return any(parent in _making for parent in path.parents)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Count a folder as an output that this process is making, see `in_scratch`."""
    _making.add(folder)
    try:
        yield
    finally:
        _making.discard(folder)


_making: set[Path] = set()


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder with all that is in it, to the device before this returns."""
    if path.is_dir():
        for root, _, files in os.walk(path):
            for name in files:
                _sync_one(Path(root, name))
            _sync_one(Path(root))
    else:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written in but not read, or a file that only others may read
        return
    try:
        os.fsync(handle)
    except OSError as cause:
        if cause.errno not in _UNSUPPORTED | {errno.EBADF}:
            raise
    finally:
        os.close(handle)


def _prefix(path: Path) -> str:
    if len(os.fsencode(path.name)) <= _LONGEST:
        return f".{path.name}.tmp-"
    return f".{path.name[: _LONGEST // 4]}~{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp-"


def _new_scratch(path: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        try:
            return folder, _locked(folder)
        except (BlockingIOError, FileNotFoundError):  # another writer took it for a stale one before it was locked
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(path: Path) -> None:
    """Remove the same output's scratch folders of processes that are gone; put back what they had moved aside."""
    prefix = _prefix(path)
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    for name in names:
        _remove_if_stale(path.parent / name, path)


def _remove_if_stale(folder: Path, path: Path) -> None:
    """Remove a scratch folder of ``path`` if no process has it."""
    try:
        if not set(os.listdir(folder)) <= {path.name, _LOCK, _OLD}:  # it only looks like one
            return
        lock = _locked(folder)
    except OSError:  # live, a link, or not ours
        return
    if lock is None:
        return
    try:
        if (folder / _OLD).exists() and not os.path.lexists(path):
            (folder / _OLD).rename(path)
        remove_claimed(folder)
    finally:
        _unlock(lock)


def is_scratch(name: str) -> bool:
    """Whether a folder is called as scratch folders are."""
    return _SCRATCH.fullmatch(name) is not None


_SCRATCH = re.compile(r"\.(.+)\.tmp-[a-z0-9_]{8}", re.DOTALL)


def remove_stale_below(folder: Path) -> None:
    """Remove scratch folders that killed processes have left anywhere in a folder of many outputs.

    The next writer of an output removes those beside it (`scratch_beside`). One that was killed between the publication
    and the removal has none if its output is complete, and so is not written again.
    """
    for root, folders, _ in os.walk(folder):
        for name in [name for name in folders if is_scratch(name)]:
            folders.remove(name)
            _remove_if_stale(Path(root, name), Path(root, _place(Path(root, name))))


def _place(scratch: Path) -> str:
    """Return the name of a scratch folder's output: what lies in it, or else what the folder is called after."""
    with contextlib.suppress(OSError):
        inside = [name for name in os.listdir(scratch) if name not in (_LOCK, _OLD)]
        if len(inside) == 1 and scratch.name.startswith(_prefix(scratch.with_name(inside[0]))):
            return inside[0]
    return _SCRATCH.sub(r"\1", scratch.name)


def _exchange(made: Path, path: Path) -> None:
    if _system_rename(made, path, exchange=True):
        return
    old = made.parent / _OLD
    path.rename(old)
    try:
        made.rename(path)
    except OSError:
        old.rename(path)
        raise
    old.rename(made)


def _rename_new(made: Path, path: Path) -> None:
    """Rename a file to a place where nothing is."""
    try:
        if _system_rename(made, path, exchange=False):
            return
        try:
            os.link(made, path, follow_symlinks=False)  # fails if something is there
            made.unlink()
        except OSError as cause:
            if cause.errno not in _UNSUPPORTED | {errno.EPERM, errno.EMLINK}:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from cause
            made.rename(path)
    except FileExistsError as cause:
        raise _exists(path) from cause


def _system_rename(source: Path, target: Path, *, exchange: bool) -> bool:
    """Rename without replacing, or exchange, in one system call; return whether the system can."""
    flags = {"linux": ("renameat2", 1, 2), "darwin": ("renamex_np", 4, 2)}
    name, exclusive, swap = flags.get(sys.platform, ("", 0, 0))
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if call is None:
        return False
    flag, paths = swap if exchange else exclusive, (os.fsencode(source), os.fsencode(target))
    here = -100  # AT_FDCWD: paths are as for rename
    done = call(here, paths[0], here, paths[1], flag) if sys.platform == "linux" else call(*paths, flag)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def start_writeback(handle: int, start: int, size: int) -> None:
    """Have the system begin to write these bytes of a file to the device, so that `publish` waits for little; Linux."""
    if (call := _sync_file_range()) is not None:
        call(
            handle, ctypes.c_int64(start), ctypes.c_int64(size), 2
        )  # SYNC_FILE_RANGE_WRITE; only advice: errors are not


@cache
def _sync_file_range() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None


def _exists(path: Path) -> OutputError:
    return OutputError("the output exists", where=path, fix="choose another --out, or pass --overwrite")
