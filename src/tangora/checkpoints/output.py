"""The output while it is made: a hidden work folder beside its place, which a killed fusion goes on from.

    .OUT.fusing/state.json                 the key, the finished shards with the hashes of their pieces, the cutoffs
    .OUT.fusing/model-0000x-of-0000y...    shards; blocks are written at their places, in any order

The key is a digest of everything that decides the output. Another key begins anew. A finished shard is read
again and compared with its hashes before it is kept; a shard that was not finished is made again. In the end the
folder is renamed to OUT. On an error that the caller must put right, the folder is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from tangora.checkpoints.plan import Place, Plan
from tangora.errors import OutputError, TangoraError
from tangora.storage.header import ITEMSIZE
from tangora.support.files import read_json, refuse_existing, write_json, writing

__all__ = ["Output", "opened"]

STATE = "state.json"


class Output:
    """The shards of a plan, written by many threads.

    Args:
        folder: the work folder.
        plan: what goes where.
        key: everything that decides the bytes.
    """

    def __init__(self, folder: Path, plan: Plan, key: str) -> None:
        self.folder, self.plan, self.key = folder, plan, key
        self._lock = Lock()
        self._handles: dict[int, int] = {}
        self._pieces: list[list[list[Any]]] = [[] for _ in plan.names]
        self._left = [0] * len(plan.names)
        for place in plan.places:
            self._left[place.shard] += max(1, place.target.entries)
        state = self._read()
        self.finished: dict[str, Any] = state.get("shards") or {}
        self.cutoffs: list[float] | None = None
        if isinstance(state.get("cutoffs"), list):
            self.cutoffs = [float.fromhex(text) for text in state["cutoffs"]]
        self.kept = frozenset(i for i, name in enumerate(plan.names) if self._intact(i, name))
        self.finished = {name: self.finished[name] for i, name in enumerate(plan.names) if i in self.kept}

    def write(self, place: Place, start: int, data: memoryview) -> None:
        """The bytes of a target from its entry ``start``."""
        handle, at = self._handle(place.shard), place.offset + start * ITEMSIZE[place.dtype]
        with writing(self.folder):
            while len(data):
                count = os.pwrite(handle, data, at)
                data, at = data[count:], at + count

    def done(self, place: Place, start: int, stop: int, digest: str) -> None:
        """These entries are written; the last of a shard makes it a finished one."""
        size = ITEMSIZE[place.dtype]
        with self._lock:
            self._pieces[place.shard].append([place.offset + start * size, (stop - start) * size, digest])
            self._left[place.shard] -= max(1, stop - start)
            if self._left[place.shard] == 0:
                self._finish(place.shard)

    def found(self, cutoffs: Sequence[float]) -> None:
        """The whole model's cutoffs are known."""
        with self._lock:
            self.cutoffs = list(cutoffs)
            self._save()

    def close(self) -> None:
        """Close what is open; a shard that is not finished stays so."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _handle(self, shard: int) -> int:
        with self._lock:
            if shard not in self._handles:
                with writing(self.folder):
                    path = self.folder / self.plan.names[shard]
                    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
                    self._handles[shard] = handle
                    os.ftruncate(handle, self.plan.sizes[shard])
                    os.pwrite(handle, self.plan.headers[shard], 0)
            return self._handles[shard]

    def _finish(self, shard: int) -> None:
        handle = self._handles.pop(shard, None)
        if handle is None:  # a shard of empty tensors has not been opened
            self._lock.release()
            try:
                self._handle(shard)
            finally:
                self._lock.acquire()
            handle = self._handles.pop(shard)
        os.close(handle)
        self.finished[self.plan.names[shard]] = sorted(self._pieces[shard])
        self._save()

    def _save(self) -> None:
        cutoffs = None if self.cutoffs is None else [value.hex() for value in self.cutoffs]
        write_json(self.folder / STATE, {"key": self.key, "shards": self.finished, "cutoffs": cutoffs})

    def _read(self) -> dict[str, Any]:
        try:
            state = read_json(self.folder / STATE)
        except TangoraError:  # none, or torn: begin anew
            state = {}
        if state.get("key") == self.key:
            return state
        for path in self.folder.iterdir():
            path.unlink()
        return {}

    def _intact(self, shard: int, name: str) -> bool:
        """Whether a shard is there that is finished, and what was written."""
        pieces, path = self.finished.get(name), self.folder / name
        if not isinstance(pieces, list) or not path.is_file() or path.stat().st_size != self.plan.sizes[shard]:
            return False
        with path.open("rb") as file:
            if file.read(len(self.plan.headers[shard])) != self.plan.headers[shard]:
                return False
            for offset, size, digest in pieces:
                file.seek(offset)
                if hashlib.sha256(file.read(size)).hexdigest() != digest:
                    return False
        return True


@contextlib.contextmanager
def opened(out: Path, plan: Plan, key: str, *, overwrite: bool) -> Iterator[Output]:
    """The output to write; it appears at ``out`` when the block ends.

    Raises:
        OutputError: ``out`` exists and ``overwrite`` is false, another process is writing it, or it cannot be written.
    """
    refuse_existing(out, overwrite)
    folder = out.parent / f".{out.name}.fusing"
    with writing(out):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    try:
        _claim(lock, out)
        with writing(out):
            output = Output(folder, plan, key)
        _refuse_full(output, out)
        try:
            yield output
        finally:
            output.close()
        with writing(out):
            _publish(folder, out)
    except OutputError:
        raise
    except TangoraError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _claim(lock: int, out: Path) -> None:
    import fcntl  # deferred: Windows has none

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        raise OutputError("another process is writing this output", where=out, fix="wait for it to end") from cause


def _refuse_full(output: Output, out: Path) -> None:
    needed = sum(size for shard, size in enumerate(output.plan.sizes) if shard not in output.kept)
    written = sum(path.stat().st_blocks * 512 for path in output.folder.iterdir())
    kept = sum(output.plan.sizes[shard] for shard in output.kept)
    free = shutil.disk_usage(output.folder).free + max(0, written - kept)
    if needed > free:
        got = f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        raise OutputError(
            "the disk is too full", got=got, where=out, fix="free some space and run the same command again"
        )


def _publish(folder: Path, out: Path) -> None:
    (folder / STATE).unlink(missing_ok=True)
    if not out.exists():
        folder.rename(out)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
    out.rename(retired / "old")
    folder.rename(out)
    shutil.rmtree(retired, ignore_errors=True)
