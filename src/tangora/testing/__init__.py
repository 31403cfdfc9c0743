"""Contract suites for plug-in authors: one function for each seam, to call from your own tests::

    from tangora.testing import check_method

    def test_contract():
        check_method("my_method")

>>> from tangora.testing import check_method
>>> check_method("average")

Each raises `AssertionError` with the promise that is broken. The suites make their own tiny inputs, without pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangora.testing.executor import check_executor
    from tangora.testing.family import check_family
    from tangora.testing.format import check_format
    from tangora.testing.method import METHOD_CHECKS, check_method
    from tangora.testing.metric import check_metric
    from tangora.testing.mode import check_mode
    from tangora.testing.router import check_router
    from tangora.testing.search import check_search
    from tangora.testing.space import check_space
    from tangora.testing.update import check_update

# name -> module: a suite is imported on first use, since some need torch and others need more
_HOME = {
    "METHOD_CHECKS": "method",
    "check_executor": "executor",
    "check_family": "family",
    "check_format": "format",
    "check_method": "method",
    "check_metric": "metric",
    "check_mode": "mode",
    "check_router": "router",
    "check_search": "search",
    "check_space": "space",
    "check_update": "update",
}

__all__ = [
    "METHOD_CHECKS",
    "check_executor",
    "check_family",
    "check_format",
    "check_method",
    "check_metric",
    "check_mode",
    "check_router",
    "check_search",
    "check_space",
    "check_update",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
