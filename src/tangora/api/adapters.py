"""An adapter, or the folder of one."""

from __future__ import annotations

import os
from typing import TypeAlias

from tangora.adapters.adapter import Adapter, load

__all__ = ["AdapterLike", "opened"]

AdapterLike: TypeAlias = "Adapter | str | os.PathLike[str]"
"""An adapter, or its folder."""


def opened(adapter: AdapterLike | None) -> Adapter | None:
    """Return the adapter, read from a folder if necessary; None stands for the base alone."""
    return adapter if adapter is None or isinstance(adapter, Adapter) else load(adapter)
