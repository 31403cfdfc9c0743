"""The mean of the weights over the last steps of a training (``training.averaged``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["Mean"]


class Mean:
    """The mean of the trained weights over the steps after ``first`` (SWA, arXiv:1803.05407), in float64."""

    COUNT = "steps in the sums"

    def __init__(self, first: int) -> None:
        self.first, self.count = first, 0
        self.sums: dict[str, Tensor] = {}

    @classmethod
    def of_last(cls, share: float, steps: int) -> Mean:
        """Return the mean over the last share of the steps, a decimal number; none for 0."""
        return cls(steps - math.ceil(Fraction(str(share)) * steps))

    def add(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Add the weights after a step, counted from 1."""
        if step <= self.first:
            return
        for name, value in weights.items():
            added = value.to("cpu", torch.float64)
            self.sums[name] = self.sums[name] + added if self.count else added
        self.count += 1

    def value(self) -> dict[str, Tensor]:
        """Return name -> mean."""
        return {name: total / self.count for name, total in self.sums.items()}
