"""The result of a search: coefficients for `tangora.fuse`, and a bound on how much better others can be. No torch."""

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
"""Decimals of a coefficient: the same number is scored, listed and saved."""


@dataclass(frozen=True)
class Found:
    """Coefficients and their certificate.

    Attributes:
        weights: one per task vector, or site -> one per task vector.
        loss: the minimized quantity without penalties: cross-entropy, entropy, or the worst task's excess, in nats.
        objective: the loss with penalties.
        gradient: norm of the smallest subgradient of objective and bounds; None if it was not computed.
        gap: proven bound: no coefficients within the limits have an objective lower by more; None if there is none.
        steps: number of steps of Newton's method or Adam, or of evaluations of the loss.
        seconds: duration of the search, without the preparation of columns or weights.
        rows: task -> number of rows used.
        settings: everything that determined the result.
        tried: weights with an evaluated loss, in order; empty if there are none. A run fills it in.
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
        """Return the content of ``fused.selection`` in ``tangora.json``: settings, certificate and rows."""
        certificate = {"loss": self.loss, "objective": self.objective, "gradient": self.gradient, "gap": self.gap}
        kept = {name: value for name, value in certificate.items() if value is not None}
        return {**self.settings, **kept, "steps": self.steps, "rows": dict(self.rows)}


def as_weights(
    coefficients: Float[Tensor, " vectors *sites"], sites: Sequence[str]
) -> list[float] | dict[str, list[float]]:
    """Return coefficients in the form that `tangora.fuse` accepts, rounded to `DIGITS`.

    >>> import torch
    >>> as_weights(torch.tensor([[0.5, 1.0], [0.25, 0.0]]), ["up", "down"])
    {'up': [0.5, 0.25], 'down': [1.0, 0.0]}
    """
    if not sites:
        return _rounded(coefficients)
    return {site: _rounded(coefficients[:, i]) for i, site in enumerate(sites)}


def _rounded(values: Tensor) -> list[float]:
    return [round(v, DIGITS) + 0.0 for v in values.double().tolist()]
