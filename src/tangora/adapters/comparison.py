"""Compare updates that are read from files with what they should be, site by site, in float64."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.initial import seed_of
from tangora.updates.task_vector import Update

__all__ = ["Loaded", "relative", "times"]

_ENTRIES = 2**18
_PROBES = 16


class Loaded(ABC):
    """An adapter as a reader loads it from its files, compared one site at a time.

    Attributes:
        reader: what reads it, for messages.
        seed: of the random vectors.
    """

    reader: str
    seed: int

    def compare(self, site: str, expected: Sequence[tuple[Update, float]]) -> tuple[float, bool]:
        """Return the relative difference at a site, and whether every entry was compared."""
        shape = expected[0][0].shape if expected else ()
        exact = math.prod(shape) <= _ENTRIES
        if exact:
            wide = ((u.to(torch.float64).dense().double(), c) for u, c in expected)
            total = sum((dense * c for dense, c in wide), torch.zeros(shape, dtype=torch.float64))
            return relative(self.dense(site).reshape(shape) - total, total), True
        generator = torch.Generator().manual_seed(seed_of(self.seed, site))
        x = torch.randn(shape[1], _PROBES, dtype=torch.float64, generator=generator)
        y = torch.zeros(shape[0], _PROBES, dtype=torch.float64)
        for update, c in expected:
            y += times(update, x) * c
        return relative(self.times(site, x) - y, y), False

    @abstractmethod
    def dense(self, site: str) -> Tensor:
        """Return what is added to the weight of a site, in float64."""

    @abstractmethod
    def times(self, site: str, x: Float[Tensor, "in probes"]) -> Float[Tensor, "out probes"]:
        """Return the product of what is added to the weight of a site, in float64."""

    @abstractmethod
    def compare_whole(self, name: str, expected: Tensor) -> float:
        """Return the relative difference of a parameter that is saved whole."""


def times(update: Update, x: Tensor) -> Tensor:
    """Return the product of an update and vectors, in float64, through its factors."""
    factors = update.factors()
    if factors is not None:
        return (factors.b.double() @ (factors.a.double() @ x)) * factors.scaling
    return update.dense().double() @ x


def relative(difference: Tensor, of: Tensor) -> float:
    """Return ``norm(difference) / norm(of)``, or the difference's norm if ``of`` is zero."""
    size, norm = float(difference.norm()), float(of.norm())
    return size / norm if norm > 0 else size
