"""What a search comes to: coefficients as `tangora.fuse` takes them, and how good they are known to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

__all__ = ["DIGITS", "Found", "as_weights"]

DIGITS = 6
"""Decimals of a found coefficient: what is scored, listed and saved is one number."""


@dataclass(frozen=True)
class Found:
    """Coefficients and their certificate.

    Attributes:
        weights: one per task vector, or site -> one per task vector.
        loss: what was minimized, without penalties: cross-entropy, entropy, or the worst task's excess, in nats.
        objective: with penalties.
        gradient: norm of the smallest subgradient of objective and bounds; None where it was not computed.
        gap: no coefficients within the bounds have an objective lower by more; None where nothing proves it.
        steps: Newton or Adam.
        seconds: of the search, without what came before it.
        rows: task -> how many were used.
        settings: what decided it.
    """

    weights: list[float] | dict[str, list[float]]
    loss: float
    objective: float
    gradient: float | None
    gap: float | None
    steps: int
    seconds: float
    rows: Mapping[str, int]
    settings: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """For ``metadata.fused.selection``: everything but the weights and the seconds."""
        certificate = {"loss": self.loss, "objective": self.objective, "gradient": self.gradient, "gap": self.gap}
        kept = {name: value for name, value in certificate.items() if value is not None}
        return {**self.settings, **kept, "steps": self.steps, "rows": dict(self.rows)}


def as_weights(
    coefficients: Float[Tensor, "vectors *sites"], sites: Sequence[str]
) -> list[float] | dict[str, list[float]]:
    """Coefficients as `tangora.fuse` takes them, rounded to `DIGITS`.

    >>> import torch
    >>> as_weights(torch.tensor([[0.5, 1.0], [0.25, 0.0]]), ["up", "down"])
    {'up': [0.5, 0.25], 'down': [1.0, 0.0]}
    """
    if not sites:
        return _rounded(coefficients)
    return {site: _rounded(coefficients[:, i]) for i, site in enumerate(sites)}


def _rounded(values: Tensor) -> list[float]:
    return [round(v, DIGITS) + 0.0 for v in values.double().tolist()]
