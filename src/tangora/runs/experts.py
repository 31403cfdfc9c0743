"""The adapters of a run, by mode and task, read on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tangora.adapters.adapter import Adapter, load

__all__ = ["Experts", "ModeExperts"]


@dataclass(eq=False)
class Experts(Mapping[str, Mapping[str, "Adapter"]]):
    """Mode -> task -> adapter. Adapters are read on first use; those of one mode are kept at a time.

    Args:
        folder: mode, task -> the adapter's folder.
        modes: their names.
        tasks: their names, in order.
    """

    folder: Callable[[str, str], Path]
    modes: Sequence[str]
    tasks: Sequence[str]
    _kept: tuple[str, ModeExperts] | None = field(default=None, repr=False)

    def __getitem__(self, mode: str) -> Mapping[str, Adapter]:
        if mode not in self.modes:
            raise KeyError(mode)
        if self._kept is None or self._kept[0] != mode:
            self._kept = (mode, ModeExperts(partial(self.folder, mode), self.tasks))
        return self._kept[1]

    def forget(self, mode: str, task: str) -> None:
        """Read an adapter again on next use, after it was trained."""
        if self._kept is not None and self._kept[0] == mode:
            self._kept[1].forget(task)

    def __iter__(self) -> Iterator[str]:
        return iter(self.modes)

    def __len__(self) -> int:
        return len(self.modes)


@dataclass(eq=False)
class ModeExperts(Mapping[str, "Adapter"]):
    """Task -> adapter of one mode, read on first use."""

    folder: Callable[[str], Path]
    tasks: Sequence[str]
    _read: dict[str, Adapter] = field(default_factory=dict, repr=False)

    def __getitem__(self, task: str) -> Adapter:
        if task not in self.tasks:
            raise KeyError(task)
        if task not in self._read:
            self._read[task] = load(self.folder(task))
        return self._read[task]

    def forget(self, task: str) -> None:
        """Read an adapter again on next use."""
        self._read.pop(task, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)
