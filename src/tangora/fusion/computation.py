"""`Computation`: a method with everything that decides its numbers, independent of where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tangora.fusion.weights import WeightTable
from tangora.methods import Method

__all__ = ["Computation"]


@dataclass(frozen=True)
class Computation:
    """A method, its weights and parameters.

    Attributes:
        method: the record of the fusion method.
        weights: one per adapter or model, or per site (in checkpoints: per tensor) one per adapter.
        parameters: the method's own.
        seed, fingerprints: with a tensor's name, they decide the uniform numbers of a random method.
    """

    method: Method
    weights: WeightTable
    parameters: Mapping[str, Any]
    seed: int = 0
    fingerprints: Sequence[str] = ()

    @property
    def by_site(self) -> bool:
        """Whether the weights differ between sites."""
        return isinstance(self.weights, dict)

    def row(self, site: str) -> list[float]:
        """Return the weights at one site."""
        return self.weights[site] if isinstance(self.weights, dict) else self.weights

    def coefficients(self, site: str) -> list[float]:
        """Return the factor of each update at one site, for a linear method."""
        return self.method.coefficients(self.row(site), self.parameters)
