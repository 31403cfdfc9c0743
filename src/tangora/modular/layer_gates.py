"""A gate per layer (TAPS, arXiv:2203.16708): open from a threshold on, and trained as if it had no step.

    W_l = W̄_l + 1[s_l ≥ τ] δ_l        dL/ds_l = ⟨dL/dW_l, δ_l⟩        dL/dδ_l = 1[s_l ≥ τ] dL/dW_l

The gradient of s passes the indicator unchanged (straight through), also of a closed gate: so a layer opens again once
its change would lower the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["RELEASED_GATES", "LayerGate", "Penalty"]

RELEASED_GATES = 52
"""The divisor of the penalty in the released code, whatever the number of gates."""


class _Indicator(torch.autograd.Function):
    """The indicator ``1[s ≥ τ]``, with the derivative 1.

    A function of its own, since the usual ``s + (1[s ≥ τ] − s).detach()`` need not be exactly 1 in floating point.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, threshold: float) -> Tensor:
        return (value >= threshold).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class LayerGate(nn.Module):
    """The gate of a layer: 1 if its value is at least the threshold, else 0.

    Args:
        value: at the start.
        threshold: τ.

    >>> LayerGate(0.15, 0.1)(), LayerGate(0.05, 0.1).is_open
    (tensor(1., grad_fn=<_IndicatorBackward>), False)
    """

    def __init__(self, value: float, threshold: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float32))
        self.threshold = threshold

    def forward(self) -> Float[Tensor, ""]:
        """Return 0 or 1, with a gradient to the value."""
        gate: Tensor = _Indicator.apply(self.value, self.threshold)  # type: ignore[no-untyped-call]
        return gate

    @property
    def is_open(self) -> bool:
        """Whether the layer's change counts."""
        return bool(self.value >= self.threshold)


class Penalty:
    """What open gates cost: ``λ/L · Σ |s_l|`` over the L gates, once it is active.

    Args:
        gates: layer -> gate.
        weight: λ.
        divisor: L; by default the number of gates.

    >>> penalty = Penalty({"one": LayerGate(0.15, 0.1), "two": LayerGate(0.25, 0.1)}, weight=2.0)
    >>> penalty.active = True
    >>> round(penalty().item(), 6)
    0.4
    """

    def __init__(self, gates: Mapping[str, LayerGate], weight: float, divisor: int | None = None) -> None:
        self.gates = list(gates.values())
        self.weight = weight / (divisor or len(self.gates))
        self.active = False

    def __call__(self) -> Tensor | float:
        """Return the penalty of the gates' present values; 0 as long as it is not active."""
        if not self.active or not self.weight:
            return 0.0
        return self.weight * torch.stack([gate.value for gate in self.gates]).abs().sum()
