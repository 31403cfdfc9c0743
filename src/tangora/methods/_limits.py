"""What a method's parameter may be: its type, read off its default, and its range."""

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
    """An interval that a numeric parameter lies in, and the advice for those outside it.

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
        """Raise `ArgumentError` when ``value`` is outside."""
        if value not in self:
            raise ArgumentError(f"{method}: {name} must be in {self}", got=value, where=f"{where}.{name}", fix=self.fix)


@dataclass(frozen=True)
class _Density(Limit):
    """(0, 1], with a word for those who think in percent."""

    def check(self, method: str, name: str, value: float, where: str = "fuse") -> None:
        """Raise `ArgumentError` when ``value`` is outside; 20 is answered with 0.20."""
        if value in self:
            return
        fix = self.fix
        if 1 < value <= 100:
            meant = f"{value / 100:.2f}" if value == int(value) else f"{value / 100:g}"
            fix = f"densities are fractions: did you mean {meant}?"
        raise ArgumentError(f"{method}: {name} must be in {self}", got=value, where=f"{where}.{name}", fix=fix)


DENSITY = _Density(low=0, high=1, open_low=True, fix="give the fraction of entries to keep, such as 0.2")


def check_density(method: str, density: float) -> None:
    """What a method with a ``density`` calls first, so that it is also safe outside the engine."""
    check_type(method, "density", density, 0.5, "fuse")
    DENSITY.check(method, "density", density)


def check_value(method: str, name: str, value: Any, default: Any, limit: Limit) -> None:
    """What a method calls for any other parameter, for the same reason."""
    check_type(method, name, value, default, "fuse")
    limit.check(method, name, value)


def check_type(method: str, name: str, value: Any, default: Any, where: str) -> None:
    """Raise `ArgumentError` unless ``value`` is of the default's type; a whole number is a number, true is none."""
    kind = type(default)
    if kind not in _KINDS:
        return
    if kind is float or kind is int:  # NumPy's numbers are numbers too
        right = isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    else:
        right = isinstance(value, kind)
    if not right:
        raise ArgumentError(
            f"{method}: {name} must be {_KINDS[kind]}",
            got=value,
            where=f"{where}.{name}",
            fix=f"such as the default, {default!r}",
        )
