"""Read input files into buffers that exist already: the pages of a memory map would stay resident."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock

from tangora.errors import FileError
from tangora.storage.header import Stored

__all__ = ["InputFiles"]


class InputFiles:
    """Input files, opened once for all threads; ``pread`` has no position that they would share."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._lock = Lock()

    def read(self, stored: Stored, start: int, into: memoryview) -> None:
        """Fill ``into`` with the tensor's bytes from ``start``.

        Raises:
            FileError: the file ends early, because it was changed meanwhile.
        """
        handle, at = self._handle(stored.path), 0
        while at < len(into):
            read = os.preadv(handle, [into[at:]], stored.start + start + at)
            if read <= 0:
                raise FileError("the file ends early", where=stored.path, fix="do not change it while it is fused")
            at += read

    def expect(self, stored: Stored, start: int, size: int) -> None:
        """Advise the system that these bytes are needed soon."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle(stored.path), stored.start + start, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all of them."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _handle(self, path: Path) -> int:
        with self._lock:
            if path not in self._handles:
                self._handles[path] = os.open(path, os.O_RDONLY)
            return self._handles[path]
