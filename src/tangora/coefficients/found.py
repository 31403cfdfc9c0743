"""The result of a search: coefficients as `tangora.fuse` takes them, and how good they are known to be. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.support.shown import one_line

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["DIGITS", "Found", "as_weights"]

DIGITS = 6
"""Decimals of a coefficient: what is scored, listed and saved is one number."""


@dataclass(frozen=True)
class Found:
    """Coefficients and their certificate.

    Attributes:
        weights: one per task vector, or site -> one per task vector.
        loss: what was minimized, without penalties: cross-entropy, entropy, or the worst task's excess, in nats.
        objective: the loss with penalties.
        gradient: norm of the smallest subgradient of objective and bounds; None if it was not computed.
        gap: no coefficients within the bounds have an objective lower by more; None if nothing proves it.
        steps: how many: of Newton's method or Adam, or evaluations of the loss.
        seconds: duration of the search, without the preparation of columns or weights.
        rows: task -> how many were used.
        settings: everything that decided it.
        tried: weights whose loss was evaluated, in order; empty if none was. A run fills it in.
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
    tried: Sequence[list[float] | dict[str, list[float]]] = ()

    def __repr__(self) -> str:
        if isinstance(self.weights, dict):
            numbers = [number for row in self.weights.values() for number in row]
            text = f"weights of {len(self.weights)} sites from {min(numbers):g} to {max(numbers):g}"
        else:
            text = "weights " + " ".join(f"{weight:g}" for weight in self.weights)
        gap = None if self.gap is None else f"gap {self.gap:.1e}"
        return one_line("Found", text, f"loss {self.loss:.4g}", gap, f"{self.steps} steps")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``fused.selection`` of ``tangora.json`` holds: the settings, the certificate and the rows."""
        certificate = {"loss": self.loss, "objective": self.objective, "gradient": self.gradient, "gap": self.gap}
        kept = {name: value for name, value in certificate.items() if value is not None}
        return {**self.settings, **kept, "steps": self.steps, "rows": dict(self.rows)}


def as_weights(
    coefficients: Float[Tensor, " vectors *sites"], sites: Sequence[str]
) -> list[float] | dict[str, list[float]]:
    """Return coefficients as `tangora.fuse` takes them, rounded to `DIGITS`.

    >>> import torch
    >>> as_weights(torch.tensor([[0.5, 1.0], [0.25, 0.0]]), ["up", "down"])
    {'up': [0.5, 0.25], 'down': [1.0, 0.0]}
    """
    if not sites:
        return _rounded(coefficients)
    return {site: _rounded(coefficients[:, i]) for i, site in enumerate(sites)}


def _rounded(values: Tensor) -> list[float]:
    return [round(v, DIGITS) + 0.0 for v in values.double().tolist()]
