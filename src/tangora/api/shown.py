"""Whether, and how, a function that is called from Python shows its progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tangora.progress import Progress

__all__ = ["Shown", "shown"]

Shown: TypeAlias = "bool | Progress | None"
"""True: show progress; False: do not; None: in a terminal or a notebook only. Or an object of one's own."""


@contextmanager
def shown(progress: Shown) -> Iterator[Progress]:
    """Return where to report progress for the length of the block."""
    if isinstance(progress, Progress):
        yield progress
    elif progress is False or (progress is None and not _somebody_watches()):
        yield Progress()
    else:
        from tangora.cli.bars import Bars  # deferred: rich's bars, for those who see them

        with Bars() as bars:
            yield bars


def _somebody_watches() -> bool:
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
