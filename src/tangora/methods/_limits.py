"""Check a method's parameters: their type, by the default's, and their range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from tangora.errors import ArgumentError

__all__ = ["DENSITY", "Limit", "check_density", "check_type", "check_value"]

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Limit:
    """The interval of a numeric parameter, and a hint for values outside it.

    >>> Limit(low=0, high=1).check("ties", "density", 0.2)
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    fix: str | None = None

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and not math.isnan(value)

    def __str__(self) -> str:
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"

    def check(self, method: str, name: str, value: float, where: str = "fuse") -> None:
        """Raise `ArgumentError` if ``value`` is outside."""
        if value not in self:
            raise ArgumentError(f"{method}: {name} must be in {self}", got=value, where=f"{where}.{name}", fix=self.fix)


@dataclass(frozen=True)
class _Density(Limit):
    """(0, 1], with a hint for values in percent."""

    def check(self, method: str, name: str, value: float, where: str = "fuse") -> None:
        """Raise `ArgumentError` if ``value`` is outside; for 20, suggest 0.20."""
        if value in self:
            return
        fix = self.fix
        if 1 < value <= 100:
            meant = f"{value / 100:.2f}" if value == int(value) else f"{value / 100:g}"
            fix = f"densities are fractions: did you mean {meant}?"
        raise ArgumentError(f"{method}: {name} must be in {self}", got=value, where=f"{where}.{name}", fix=fix)


DENSITY = _Density(low=0, high=1, open_low=True, fix="give the fraction of entries to keep, such as 0.2")


def check_density(method: str, density: float) -> None:
    """Check a density; a method calls this first, so that it is safe without the engine too."""
    check_type(method, "density", density, 0.5, "fuse")
    DENSITY.check(method, "density", density)


def check_value(method: str, name: str, value: Any, default: Any, limit: Limit) -> None:
    """Check any other parameter, for the same reason."""
    check_type(method, name, value, default, "fuse")
    limit.check(method, name, value)


def check_type(method: str, name: str, value: Any, default: Any, where: str) -> None:
    """Raise `ArgumentError` unless ``value`` has the default's type; an integer counts as a number, a bool does not."""
    kind = type(default)
    if kind not in _KINDS:
        return
    if kind is float or kind is int:  # NumPy's numbers are numbers too
        valid = isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    else:
        valid = isinstance(value, kind)
    if not valid:
        raise ArgumentError(
            f"{method}: {name} must be {_KINDS[kind]}",
            got=value,
            where=f"{where}.{name}",
            fix=f"such as the default, {default!r}",
        )
