"""File-system events of a process, counted, and a kill at one of them.

An event is what changes files below a folder: every call that Python audits (open to write, mkdir, rename, remove,
...), the system's rename, sync and pwrite, and the writers that Python does not see (safetensors, torch). Writers of
data have a second event, at which half of the data is there.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

READING = os.O_RDONLY
_AUDITED = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_AUDITED += ("os.scandir", "os.listdir", "shutil.rmtree", "tempfile.mkdtemp", "fcntl.flock")


class Events:
    """Counts the events below ``folder`` in this process, and calls ``at`` at the event of number ``number``."""

    def __init__(self, folder: Path, number: int = 0, how: int = signal.SIGKILL) -> None:
        self.folder, self.number, self.how = str(folder), number, how
        self._count, self.seen = itertools.count(1), 0

    def tick(self, before: Callable[[], object] | None = None) -> None:
        """Count an event; at the chosen one end, after what is to be done ``before``, or only stop."""
        self.seen = count = next(self._count)
        if count == self.number:
            if before is not None and self.how == signal.SIGKILL:
                before()
            os.kill(os.getpid(), self.how)

    def install(self) -> None:
        """Listen from now on, until the process ends."""
        import safetensors.torch
        import torch

        from tangora.support import publishing

        sys.addaudithook(self._audited)
        self._around(publishing, "_system_rename")
        self._around(os, "fsync")
        self._torn(safetensors.torch, "serialize_file", lambda _tensors, path, *_, **__: path)
        self._torn(torch, "save", lambda _value, path, *_, **__: path)
        self._torn(Path, "write_text", lambda path, *_, **__: path)
        self._torn_pwrite()

    def _audited(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and self._below(path) and self._writes(flags):
                self.tick()
        elif event in _AUDITED and (event == "fcntl.flock" or self._below(arguments[0])):
            self.tick()

    def _below(self, path: object) -> bool:
        """A path in the folder, or relative to it, or to a handle."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return path is not None  # a handle: only `shutil.rmtree` has them
        name = os.fsdecode(path)
        return name.startswith(self.folder) or not (os.path.isabs(name) or name.startswith("../"))

    @staticmethod
    def _writes(flags: int | None) -> bool:
        return flags is not None and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))

    def _around(self, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def counted(*arguments: object, **options: object) -> object:
            self.tick()
            result = real(*arguments, **options)
            self.tick()
            return result

        setattr(owner, name, counted)

    def _torn(self, owner: object, name: str, path_of: Callable[..., object]) -> None:
        real = getattr(owner, name)

        def counted(*arguments: object, **options: object) -> object:
            path = path_of(*arguments, **options)
            if not isinstance(path, (str, os.PathLike)) or not self._below(path):
                return real(*arguments, **options)
            self.tick()
            result = real(*arguments, **options)
            self.tick(lambda: os.truncate(path, os.path.getsize(path) // 2))
            return result

        setattr(owner, name, counted)

    def _torn_pwrite(self) -> None:
        real = os.pwrite

        def counted(handle: int, data: memoryview, at: int) -> int:
            self.tick()
            self.tick(lambda: real(handle, data[: len(data) // 2], at))
            return real(handle, data, at)

        os.pwrite = counted
