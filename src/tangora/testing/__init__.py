"""The contracts of Tangora's seams as functions that check one implementation: `check_metric` and its like.

Each makes its own tiny inputs, and raises an AssertionError that says which promise is broken. They need no pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangora.testing.metric import check_metric

__all__ = ["check_metric"]

_HOME = {"check_metric": "metric"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
