"""A step: compress the updates to small matrices in shared bases, to fuse those (compress, then merge)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit, check_value
from tangora.methods._spectral import as_matrices, decompose
from tangora.methods._steps import Change, fusion_step

__all__ = ["ctm"]

SHARED = Limit(low=1, fix="give the rank of the result, such as that of one adapter")
BALANCE = Limit(low=0, high=1, fix="1 gives all tasks the same say in the bases, 0 one by their energy")
_SWEEPS = 10  # the energy that the bases hold rises with every sweep, after the first few by next to nothing


@fusion_step(
    "ctm",
    reference="arXiv:2606.03723",
    plain=False,
    symmetric=False,  # a sweep begins with the outputs
    neutral={"shared_rank": 2**31},
    limits={"shared_rank": SHARED, "balance": BALANCE},
)
def ctm(deltas: Float[Tensor, " tasks *param"], *, shared_rank: int = 16, balance: float = 1.0) -> Change:
    """Write the updates in two bases of rank R that all tasks share, and fuse the coordinates (compress, then merge).

    U ``[out, R]`` and V ``[in, R]`` with orthonormal columns maximize ``Σₜ ‖Uᵀ ν̂ₜ V‖²`` for ``ν̂ₜ = νₜ / ‖νₜ‖^β``: a
    Tucker-2 decomposition, by HOSVD (the leading singular vectors of the ν̂ₜ side by side, and stacked) and sweeps of
    HOOI (U from the ``ν̂ₜV``, then V from the ``Uᵀν̂ₜ``). Any method fuses the coordinates ``Mₜ = Uᵀ νₜ V``, and
    ``ν = U M Vᵀ`` has rank R by construction; alone, ``M = Σₜ λₜ Mₜ`` (arXiv:2606.03723, compress-then-merge).

    Choose it when the fused adapter must have the rank of one expert: a method that is cut to a rank afterwards loses
    what it found, here nothing is left to cut. ``ctm+ties_per_tensor`` and ``ctm+dare_ties`` are the paper's.

    How the paper uses its knob could not be confirmed; here ``balance`` is the exponent β of the rescaling, which is
    for the bases alone: the coordinates are those of the updates themselves. There are ten sweeps. The bases are
    found in the space that the tasks' leading directions span together, so nothing of the size of the weight is
    decomposed but the updates, once each. If R is at least the rank of all updates together, nothing is lost, and a
    linear method gives its usual result. A convolution's kernel is used as ``[out, the rest]``; vectors and numbers
    are fused as they are. Methods with statistics of the experts' data cannot follow.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update; they multiply the coordinates, not the bases.
        shared_rank: R, the rank of the result.
        balance: β, in [0, 1].

    Raises:
        ArgumentError: the rank is smaller than 1, or the balance is not in [0, 1].

    >>> deltas = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])
    >>> ctm(deltas, weights=torch.ones(2, 1, 1), shared_rank=1).round(decimals=4) + 0.0
    tensor([[6., 0.],
            [0., 0.]])
    """
    check_value("ctm", "shared_rank", shared_rank, 16, SHARED)
    check_value("ctm", "balance", balance, 1.0, BALANCE)
    matrices = as_matrices(deltas)
    if matrices is None or not bool(matrices.any()):
        return Change(deltas)
    parts = [decompose(matrix) for matrix in matrices]
    left = decompose(torch.cat([u * s for u, s, _ in parts], 1))[0]
    right = decompose(torch.cat([s[:, None] * vh for _, s, vh in parts]))[2].T
    cores = torch.stack([((left.T @ u) * s) @ (vh @ right) for u, s, vh in parts])
    norms = torch.linalg.vector_norm(cores.flatten(1), dim=1)
    scaled = cores * torch.where(norms > 0, norms.clamp(min=1e-30) ** -balance, 0.0)[:, None, None]
    outputs, inputs = _bases(scaled, shared_rank)
    u, v = left @ outputs, right @ inputs
    return Change(outputs.T @ cores @ inputs, back=lambda fused: u @ fused @ v.T)


def _bases(cores: Float[Tensor, "tasks k l"], rank: int) -> tuple[Float[Tensor, "k r"], Float[Tensor, "l r"]]:
    """Return the shared bases of a Tucker-2 decomposition, by HOSVD and sweeps of HOOI."""
    inputs = _leading(torch.cat(list(cores.mT), 1), rank)
    outputs = _leading(torch.cat(list(cores), 1), rank)
    for _ in range(_SWEEPS if rank < max(cores.shape[1:]) else 0):
        outputs = _leading(torch.cat(list(cores @ inputs), 1), rank)
        inputs = _leading(torch.cat(list((outputs.T @ cores).mT), 1), rank)
    return outputs, inputs


def _leading(matrix: Float[Tensor, "n m"], rank: int) -> Float[Tensor, "n r"]:
    return decompose(matrix)[0][:, :rank]
