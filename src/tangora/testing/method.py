"""The contract of a fusion method, tried by its own promises (`tangora.methods.Promises`).

Inputs are three stacks of 24 x 20 numbers, large enough that usual defaults drop something. If a method decomposes
matrices (``exact=False``), results are compared in float64, within a bound on rounding for any processor.
"""

from __future__ import annotations

from collections.abc import Callable

from tangora.methods import Method, get
from tangora.testing import _method_promises as promises
from tangora.testing import _method_values as values

__all__ = ["METHOD_CHECKS", "check_method"]

METHOD_CHECKS: tuple[Callable[[Method], None], ...] = tuple(
    getattr(module, name) for module in (promises, values) for name in module.__all__
)
"""Every check as a function of its own, for a test that is parametrized by them."""


def check_method(method: Method | str) -> None:
    """Check that a fusion method keeps the contract and every promise that it makes.

    Args:
        method: a record of `tangora.methods`, or its name.

    Raises:
        AssertionError: a promise is broken; the message says which.
        PluginError: there is no method of that name.

    >>> check_method("task_arithmetic")
    """
    record = get(method) if isinstance(method, str) else method
    for check in METHOD_CHECKS:
        try:
            check(record)
        except AssertionError as broken:
            raise AssertionError(f"{record.name}: {broken}") from None
        except Exception as cause:  # the function is third-party code and may raise anything
            what = f"{check.__name__} ends with {type(cause).__name__}: {cause}"
            raise AssertionError(f"{record.name}: {what}") from cause
