"""The output while it is made: a hidden work folder beside it, from which a killed fusion continues.

    .OUT.fusing/state.json                     the key, the finished shards with the hashes of their chunks, the cutoffs
    .OUT.fusing/OUT/model-0000x-of-0000y...    shards; blocks are written at their offsets, in any order

The key is a digest of everything that decides the output; if it differs, the fusion starts again. A finished shard is
read again and compared with its hashes before it is kept; an unfinished shard is made again. At the end OUT is renamed
to its place. On an error that the caller must correct, the work folder is removed.

The work folder is private, and locked while a process works in it (`tangora.support.publishing.claimed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from tangora.checkpoints.plan import OutputPlan, Placement
from tangora.errors import OutputError, TangoraError
from tangora.storage.header import ITEMSIZE
from tangora.support.files import list_files, read_json, refuse_output, write_json, writing
from tangora.support.publishing import claimed, making, publish, remove_claimed, start_writeback

__all__ = ["OutputFolder", "opened"]

STATE = "state.json"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class OutputFolder:
    """The shards of a plan, written by many threads.

    Args:
        work: the work folder.
        name: the output's name in it.
        plan: the layout of the output.
        key: a digest of everything that decides the bytes.
    """

    def __init__(self, work: Path, name: str, plan: OutputPlan, key: str) -> None:
        self.work, self.folder, self.plan, self.key = work, work / name, plan, key
        self._lock = Lock()
        self._handles: dict[int, int] = {}
        self._chunks: list[list[list[Any]]] = [[] for _ in plan.names]
        self._left = [0] * len(plan.names)
        for placement in plan.placements:
            self._left[placement.shard] += max(1, placement.target.entries)
        state = self._read()
        self.finished: dict[str, Any] = state.get("shards") or {}
        self.cutoffs: list[float] | None = None
        if isinstance(state.get("cutoffs"), list):
            self.cutoffs = [float.fromhex(text) for text in state["cutoffs"]]
        self.kept = frozenset(i for i, name in enumerate(plan.names) if self._intact(i, name))
        self.finished = {name: self.finished[name] for i, name in enumerate(plan.names) if i in self.kept}
        self._remove_others()

    def write(self, placement: Placement, start: int, data: memoryview) -> None:
        """Write the bytes of a target from its entry ``start``."""
        handle, at = self._handle(placement.shard), placement.offset + start * ITEMSIZE[placement.dtype]
        with writing(self.folder):
            begin = at
            while len(data):
                count = os.pwrite(handle, data, at)
                data, at = data[count:], at + count
            start_writeback(handle, begin, at - begin)

    def done(self, placement: Placement, start: int, stop: int, digest: str) -> None:
        """Record that these entries are written; a shard is finished with its last entries."""
        size = ITEMSIZE[placement.dtype]
        with self._lock:
            self._chunks[placement.shard].append([placement.offset + start * size, (stop - start) * size, digest])
            self._left[placement.shard] -= max(1, stop - start)
            if self._left[placement.shard] == 0:
                self._finish(placement.shard)

    def save_cutoffs(self, cutoffs: Sequence[float]) -> None:
        """Save the whole model's cutoffs."""
        with self._lock:
            self.cutoffs = list(cutoffs)
            self._save()

    def close(self) -> None:
        """Close the open files; an unfinished shard stays unfinished."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _handle(self, shard: int) -> int:
        with self._lock:
            if shard not in self._handles:
                with writing(self.folder):
                    path = self.folder / self.plan.names[shard]
                    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _NO_LINK, 0o666)
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
        self.finished[self.plan.names[shard]] = sorted(self._chunks[shard])
        self._save()

    def _save(self) -> None:
        cutoffs = None if self.cutoffs is None else [value.hex() for value in self.cutoffs]
        write_json(self.work / STATE, {"key": self.key, "shards": self.finished, "cutoffs": cutoffs})

    def _read(self) -> dict[str, Any]:
        try:
            state = read_json(self.work / STATE)
        except TangoraError:  # missing or damaged: start again
            state = {}
        if state.get("key") == self.key and self.folder.is_dir():
            return state
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return {}

    def _remove_others(self) -> None:
        """Remove all but the finished shards: what a killed process was writing would be published, and listed."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in self.finished:
                path.unlink()

    def _intact(self, shard: int, name: str) -> bool:
        """Return whether a shard is finished, and its file unchanged."""
        chunks, path = self.finished.get(name), self.folder / name
        if not isinstance(chunks, list) or not path.is_file() or path.stat().st_size != self.plan.sizes[shard]:
            return False
        with path.open("rb") as file:
            if file.read(len(self.plan.headers[shard])) != self.plan.headers[shard]:
                return False
            for offset, size, digest in chunks:
                file.seek(offset)
                if hashlib.sha256(file.read(size)).hexdigest() != digest:
                    return False
        return True


@contextlib.contextmanager
def opened(out: Path, plan: OutputPlan, key: str, *, record: str, overwrite: bool) -> Iterator[OutputFolder]:
    """Provide the output to write; it appears at ``out`` when the block ends, with ``record`` in it.

    Raises:
        OutputError: ``out`` exists and ``overwrite`` is false, another process is writing it, or it cannot be written.
    """
    refuse_output(out, overwrite)
    work = out.parent / f".{out.name}.fusing"
    with claimed(work, out):
        try:
            with writing(out):
                output = OutputFolder(work, out.name, plan, key)
            _refuse_full(output, out)
            with making(output.folder):
                try:
                    yield output
                finally:
                    output.close()
                with writing(out):
                    _publish(output, out, record, overwrite)
        except OutputError:
            raise
        except TangoraError:
            remove_claimed(work)
            raise


def _publish(output: OutputFolder, out: Path, record: str, overwrite: bool) -> None:
    refuse_output(out, overwrite)
    list_files(output.folder, record)
    (output.work / STATE).unlink()  # from here on, what lies beside it may be the output that was replaced
    publish(output.folder, out, overwrite=overwrite)
    remove_claimed(output.work)


def _refuse_full(output: OutputFolder, out: Path) -> None:
    needed = sum(size for shard, size in enumerate(output.plan.sizes) if shard not in output.kept)
    written = sum(path.stat().st_blocks * 512 for path in output.folder.iterdir())
    kept = sum(output.plan.sizes[shard] for shard in output.kept)
    free = shutil.disk_usage(output.folder).free + max(0, written - kept)
    if needed > free:
        got = f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        raise OutputError(
            "the disk is too full", got=got, where=out, fix="free some space and run the same command again"
        )
