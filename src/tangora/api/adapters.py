"""An adapter, or the folder of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

from tangora.adapters.adapter import Adapter, load_beside
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.tasks import Base

__all__ = ["AdapterLike", "opened"]

AdapterLike: TypeAlias = "Adapter | str | os.PathLike[str]"
"""An adapter, or its folder."""


def opened(adapter: AdapterLike | None, base: Base) -> Adapter | None:
    """Return the adapter, read from a folder if necessary, beside its base; None stands for the base alone.

    Raises:
        ArgumentError: it is something else, such as a list.
    """
    if adapter is None or isinstance(adapter, Adapter):
        return adapter
    if not isinstance(adapter, str | os.PathLike):
        fix = "give one adapter; for several, call it for each"
        raise ArgumentError("this is neither an adapter nor its folder", got=type(adapter).__name__, fix=fix)
    return load_beside(adapter, base.config.model, base.config.revision)
