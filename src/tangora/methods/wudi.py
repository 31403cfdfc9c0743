"""WUDI: the update that agrees with each task's on that task's own row space, by least squares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._spectral import Triplets, as_matrices, decompose, mean_of
from tangora.methods._sums import weighted_sum

__all__ = ["wudi"]

RIDGE = Limit(low=0, fix="0 is the least-squares solution, 0.01 stays near the sum in weak directions")


@fusion_method(
    "wudi",
    granularity="tensor",
    exact=False,
    symmetric=False,  # the rows of an update stand for the inputs of its layer
    reference="arXiv:2503.08099",
    default_weight=1.0,
    copies=(6, 10),
    limits={"ridge": RIDGE},
)
def wudi(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], ridge: float = 0.01
) -> Float[Tensor, "*param"]:
    """The update that acts as each task's does on the inputs which that task's own rows span (WUDI-Merging).

    The rows of a linear layer's update are sums of the layer's inputs, so they stand in for the data. ``ν`` minimizes
    ``Σₜ ‖(ν − λₜνₜ) νₜᵀ‖² / ‖νₜ‖²`` (arXiv:2503.08099, the loss of WUDI-Merging, there with λ = 1). This is linear
    least squares: with ``Gₜ = νₜᵀνₜ / ‖νₜ‖²``, ``ν = (Σₜ λₜ νₜ Gₜ) (Σₜ Gₜ)⁺``. The pseudo-inverse gives the solution
    of least norm, so nothing is added outside the rows that the tasks span together.

    Choose it when no data can be had and tasks interfere: it needs only the adapters, and no λ has to be found. Compare
    a few values of the ridge.

    The reference approaches the minimum by some hundred steps of Adam; here it is computed. For low-rank updates the
    work is in the joint row space, of at most the sum of the ranks: one decomposition per task and one of the rows
    together, about the cost of `tsv_m`. If the tasks' rows are nearly, but not quite, the same (LoRA adapters that
    started from one A), the exact minimum is large in the directions in which they differ a little. So a ridge is
    added, ``ρ ‖ν − Σₜ λₜ νₜ‖²`` with ρ = ``ridge`` times the largest eigenvalue of ``Σₜ Gₜ``: where the tasks have
    little energy, the result stays near their sum, where the reference's steps start too. 0 is the paper's loss; a
    large ridge is `task_arithmetic`. Singular values that are zero up to rounding are left out, and so are updates of
    zero. A convolution's kernel is used as ``[out, the rest]``; vectors and numbers are averaged.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update; they multiply the targets, so they do not change the Gₜ.
        ridge: ρ, as a fraction of the largest eigenvalue of ``Σₜ Gₜ``.

    Raises:
        ArgumentError: the ridge is negative.

    >>> deltas = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
    >>> wudi(deltas, weights=torch.ones(2, 1, 1), ridge=0.0).round(decimals=4)
    tensor([[2.6667, 0.0000],
            [0.0000, 2.0000]])
    """
    check_value("wudi", "ridge", ridge, 0.01, RIDGE)
    matrices = as_matrices(deltas)
    if matrices is None:
        return mean_of(deltas, weights).to(deltas.dtype)
    parts = [decompose(matrix) for matrix in matrices]
    terms = [term.reshape(deltas.shape[1:]) for term in _terms(parts, ridge)]
    return weighted_sum(terms, weights).to(deltas.dtype)


def _terms(parts: list[Triplets], ridge: float) -> list[Float[Tensor, "out in"]]:
    """Return each task's term of the solution, ``νₜ (Gₜ + ρ) (ΣG + ρ)⁻¹``, from ``νₜ = Uₜ Sₜ Vₜᵀ``.

    With the rows ``R = [SₜVₜᵀ/‖νₜ‖]`` of all tasks, ``ΣG = RᵀR`` and ``νₜGₜ = Uₜ Sₜ²/‖νₜ‖ Rₜ``. One decomposition
    ``R = P D Qᵀ`` replaces the inverse of ΣG, whose condition is the square of that of R.
    """
    norms = [s.norm() for _, s, _ in parts]
    rows = torch.cat([s[:, None] * vh / n.clamp(min=1e-30) for (_, s, vh), n in zip(parts, norms, strict=True)])
    p, d, qh = decompose(rows, slack=16)
    shift = ridge * d.max().square() if len(d) else d.new_zeros(())
    filtered = (p * (d / (d.square() + shift))) @ qh
    pieces = zip(parts, norms, filtered.split([len(s) for _, s, _ in parts]), strict=True)
    return [(u * (s.square() / n.clamp(min=1e-30) + shift * n)) @ piece for (u, s, _), n, piece in pieces]
