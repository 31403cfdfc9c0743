"""How far is the network from its expansion? The linearity gap along the path to an expert."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tangora.errors import ArgumentError

__all__ = ["Gap", "linearity_gap"]


@dataclass(frozen=True)
class Gap:
    """The difference of the network from its expansion at one point of a path.

    Attributes:
        distance: of the logits, relative to their change in the network.
        agreement: share of rows with the same prediction.
    """

    distance: float
    agreement: float


def linearity_gap(
    network: Float[Tensor, "rows classes"],
    expansion: Float[Tensor, "rows classes"],
    origin: Float[Tensor, "rows classes"],
) -> Gap:
    """Return the gap between the network at φ and its first-order expansion at φ₀.

    With ``f_lin(φ) = f(φ₀) + J(φ - φ₀)`` (arXiv:2310.04742, eq. 4) the distance is
    ``‖f(φ) - f_lin(φ)‖ / ‖f(φ) - f(φ₀)‖``, with Frobenius norms over all rows and classes, and 0 if nothing moved.
    Along φ₀ + aτ it grows from 0, in proportion to a at first. Far below 1, the network behaves like its expansion (the
    kernel regime, in which the theory of task arithmetic holds). From about 1, the expansion does not describe it.

    ``tangora analyze`` uses the path in weights, τ = ΔW, on which fusion coefficients act. If B₀ = 0 and A is frozen,
    it is the path of φ as well. For LoRA it is not, since A moves too.

    For a tangent adapter, it measures the loss from serving the file as an ordinary, non-linear network.

    Args:
        network: logits of the network at φ.
        expansion: logits of the expansion at φ.
        origin: logits at φ₀.

    Raises:
        ArgumentError: the shapes differ.

    >>> import torch
    >>> origin, moved = torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 1.0]])
    >>> linearity_gap(moved, torch.tensor([[2.0, 1.0]]), origin)
    Gap(distance=0.3333333333333333, agreement=1.0)
    """
    if not network.shape == expansion.shape == origin.shape:
        shapes = tuple(network.shape), tuple(expansion.shape), tuple(origin.shape)
        raise ArgumentError("logits of one set of rows must have one shape", got=shapes, where="linearity_gap")
    difference = float((network.double() - expansion.double()).norm())
    moved = float((network.double() - origin.double()).norm())
    distance = difference / moved if moved > 0 else (0.0 if difference == 0 else float("inf"))
    return Gap(distance, float((network.argmax(-1) == expansion.argmax(-1)).double().mean()))
