"""Progress of functions that are called from Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tangora.progress import Progress, watched

__all__ = ["Shown", "shown"]

Shown: TypeAlias = "bool | Progress | None"
"""True to show progress, False to hide it, None for a terminal or a notebook only; or a `Progress` of your own."""


@contextmanager
def shown(progress: Shown) -> Iterator[Progress]:
    """Yield the object that receives progress."""
    if isinstance(progress, Progress):
        yield progress
    elif progress is False or (progress is None and not watched()):
        yield Progress()
    else:
        from tangora.cli.bars import Bars  # deferred: rich is only needed to draw bars

        with Bars() as bars:
            yield bars
