"""An adapter, however it is given."""

from __future__ import annotations

import os
from typing import TypeAlias

from tangora.adapters.adapter import Adapter, load

__all__ = ["AdapterLike", "opened"]

AdapterLike: TypeAlias = "Adapter | str | os.PathLike[str]"
"""An adapter, or its folder."""


def opened(adapter: AdapterLike | None) -> Adapter | None:
    """Return the adapter, read from its folder if that is given; None stands for the base alone."""
    return adapter if adapter is None or isinstance(adapter, Adapter) else load(adapter)
