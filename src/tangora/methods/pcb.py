"""PCB-Merging: at every entry the tasks compete, by their own strength and their agreement with the others."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import DENSITY, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sparsity import threshold, trim

__all__ = ["pcb"]


@fusion_method(
    "pcb",
    granularity="model",
    exact=False,  # the sums over all entries depend on their order
    neutral={"density": 1.0},
    reference="arXiv:2410.02396",
    default_weight=1.0,
    copies=(4, 12),
    limits={"density": DENSITY},
)
def pcb(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], density: float = 0.2
) -> Float[Tensor, "*param"]:
    """The mean of the updates at every entry, weighted by a balance of strength and agreement (PCB-Merging).

    The balance of task t is ``βₜ = softmax(T · N(νₜ⊙νₜ)) ⊙ Σⱼ softmax(N(νₜ⊙νⱼ))``, with softmax over all entries of the
    model and N a division by the largest magnitude. The entries with the largest βₜ are kept, ``β̂ₜ``, and
    ``ν = Σₜ λₜ β̂ₜ⊙νₜ / Σₜ β̂ₜ`` (arXiv:2410.02396, PCB-Merging, equations of its section on parameter competition
    balancing; there with one λ).

    Choose it for dense task vectors when the trim of `ties` drops too much: entries are dropped by size and agreement
    together, and those left are weighted instead of elected.

    N is not spelled out in the sources at hand, and the density is tuned there. Entries that are zero take no part in
    the mean, so that a site which an adapter lacks does not dilute the others'; T counts all adapters. At an entry that
    no task keeps the result is zero. The cost is T² passes over all entries, in float64.

    Args:
        deltas: the updates νₜ, stacked; all of the model's tensors, as one vector per task.
        weights: one row per task, broadcasting to the update.
        density: the fraction of each task's entries that is kept, in (0, 1].

    Raises:
        ArgumentError: the density is not in (0, 1].

    >>> pcb(torch.tensor([[4.0, 1.0], [4.0, 1.0]]), weights=torch.tensor([[1.0], [0.5]]), density=0.5)
    tensor([3., 0.])
    """
    check_density("pcb", density)
    total = deltas.new_zeros(deltas.shape[1:], dtype=torch.float64)
    shares = torch.zeros_like(total)
    for t in range(len(deltas)):
        balance = _balance(deltas, t)
        balance = trim(balance, threshold(balance, density))
        shares += balance
        total = total + balance * deltas[t] * weights[t]
    return (total / torch.where(shares > 0, shares, 1.0)).to(deltas.dtype)


def _balance(deltas: Float[Tensor, " tasks *param"], t: int) -> Float[Tensor, "*param"]:
    """Return βₜ, up to a factor that all tasks share, and zero where the update is zero."""
    own = deltas[t].double()
    strength = _softmax(len(deltas) * _normalized(own * own))
    agreement = torch.zeros_like(own)
    for other in deltas:
        agreement += _softmax(_normalized(own * other.double()))
    return torch.where(own != 0, strength * agreement, 0.0)


def _normalized(values: Float[Tensor, "*param"]) -> Float[Tensor, "*param"]:
    largest = values.abs().max() if values.numel() else values.new_zeros(())
    return values / largest if bool(largest > 0) else values


def _softmax(values: Float[Tensor, "*param"]) -> Float[Tensor, "*param"]:
    """Return the softmax over all entries times their number, which keeps products of two of them in range."""
    if not values.numel():
        return values
    powers = (values - values.max()).exp()
    return powers / powers.mean()
