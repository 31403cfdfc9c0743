"""The leading singular triplets of a large matrix to the precision of its numbers, by a block Krylov iteration.

A block of random vectors and its images under ``DᵀD`` span a space that contains the leading right vectors ever more
closely (Musco and Musco, arXiv:1504.05477, algorithm 2). Against one vector at a time (Lanczos, as ARPACK does it) the
products are those of matrices, which a processor computes many times as fast:

    Q ← [V, V₁, V₂, …],  V_{i+1} = orth((I − QQᵀ) DᵀD V_i);   QᵀDᵀDQ w = θ w;   y = Q w

The iteration ends when the residuals ``‖DᵀDy − θy‖`` of all wanted vectors are at the noise of the products. The
triplets are then computed from ``D y`` in float64, so that the error that is stated is that of what is returned,
whatever the iteration has missed.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["leading_triplets"]

_MORE = 8  # vectors of a block beyond the wanted ones: the last of those converge sooner with them
_PRECISION = 1e-5  # of a residual, relative to its eigenvalue
_NOISE = 16  # times the dtype's eps and the largest eigenvalue: what products of matrices leave of a residual
_BLOCK = 2**22  # entries that are widened to float64 at a time


def leading_triplets(
    matrix: Float[Tensor, "out in"], rank: int, seed: int = 0
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, " rank"], Float[Tensor, "rank in"]] | None:
    """Return the leading ``rank`` left vectors, singular values and right vectors, in float64.

    Args:
        matrix: finite and not zero, in float32 or float64, with more than ``rank`` rows and columns.
        rank: at least 1.
        seed: of the first block; results differ by it as little as by rounding.

    Returns:
        None if the space has grown to that of the whole matrix before the residuals were small: then its SVD is
        cheaper.

    >>> u, s, vh = leading_triplets(torch.diag(torch.arange(1.0, 41.0)), 2)
    >>> [round(float(value), 6) for value in s]
    [40.0, 39.0]
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    right = _right_vectors(tall, rank, seed)
    if right is None:
        return None
    right = torch.linalg.qr(right.double())[0]
    u, s, w = torch.linalg.svd(_product(tall, right), full_matrices=False)
    vh = w @ right.T
    return (u, s, vh) if tall is matrix else (vh.T, s, u.T)


def _right_vectors(tall: Float[Tensor, "m n"], rank: int, seed: int) -> Float[Tensor, "n rank"] | None:
    scale = float(torch.linalg.vector_norm(tall, dtype=torch.float64))
    noise = _NOISE * torch.finfo(tall.dtype).eps
    width, block = tall.shape[1], rank + _MORE
    generator = torch.Generator().manual_seed(seed)
    new = torch.linalg.qr(torch.randn(width, block, generator=generator).to(tall))[0]
    space, images = new, new[:, :0]
    while space.shape[1] <= width:
        # By the norm after each product: squares of small entries would vanish in float32.
        images = torch.cat([images, tall.T @ ((tall @ new) / scale) / scale], 1)
        core = space.T @ images
        values, vectors = torch.linalg.eigh(((core + core.T) / 2).double())
        values, vectors = values[-rank:], vectors[:, -rank:]
        rest = _without(images[:, -block:], space)  # what the images of earlier blocks add is in the space already
        left = rest.double() @ vectors[-block:]
        if bool((left.norm(dim=0) <= _PRECISION * values.abs() + noise * values[-1]).all()):
            chosen: Tensor = space @ vectors.flip(1).to(space)
            return chosen
        # The remainder of a block that has converged is noise, whose directions are as good as any.
        new = torch.linalg.qr(_without(torch.linalg.qr(rest)[0], space))[0]
        space = torch.cat([space, new], 1)
    return None


def _without(vectors: Float[Tensor, "n k"], space: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
    """Return vectors less their parts in a space, twice, since one projection leaves what rounding puts back."""
    for _ in range(2):
        vectors = vectors - space @ (space.T @ vectors)
    return vectors


def _product(tall: Float[Tensor, "m n"], right: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    """Return ``tall @ right`` in float64, block by block."""
    step = max(1, _BLOCK // tall.shape[1])
    return torch.cat([tall[at : at + step].double() @ right for at in range(0, len(tall), step)])
