"""The leading singular triplets of a large matrix, with an error that does not depend on how they were found.

A matrix D is multiplied by random vectors, the range of the products is refined by a few multiplications by ``D Dᵀ``,
and an orthonormal basis Q of it is taken (Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1):

    Y = D Ω;   Y ← D (Dᵀ Q(Y)), until the captured energy no longer grows;   Qᵀ D = W S Vᵀ;   U = Q W

U is orthonormal, and ``U_r S_r V_rᵀ = U_r U_rᵀ D`` exactly, so the squared error of any rank is ``‖D‖² − Σ_{i≤r} sᵢ²``
whatever Ω was: with unlucky vectors the error is larger, and is stated as such. Where many triplets are wanted, U are
the eigenvectors of ``D Dᵀ`` instead, for which the same holds; small matrices get the whole SVD.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.updates.ranks import least_rank
from tangora.updates.truncation import squared_norm, whole_svd

__all__ = ["Leading", "leading", "leading_within"]

_SMALL = 384  # the shorter side of the largest matrix that gets a whole SVD
_MORE, _SHARE = 16, 0.25  # vectors beyond the rank; above this share of the shorter side, eigenvectors are cheaper
_FIRST = 64  # vectors of the first attempt to stay within an error
_STEPS, _GROWTH = 8, 1e-3  # refinements at most; of the energy left out, what another one has to gain
_BLOCK = 2**22  # entries that are widened to float64 at a time

Matrix = Float[Tensor, "out in"]


@dataclass(frozen=True)
class Leading:
    """Leading singular triplets, in float64, and the squared norm of the whole matrix.

    Attributes:
        u: left vectors ``[out, k]``, orthonormal.
        s: singular values ``[k]``, descending. They are never larger than the true ones.
        vh: right vectors ``[k, in]``.
        square: ``‖D‖²``.
    """

    u: Float[Tensor, "out k"]
    s: Float[Tensor, " k"]
    vh: Float[Tensor, "k in"]
    square: float

    def error(self, rank: int) -> float:
        """Return the relative error (Frobenius) of the first ``rank`` triplets."""
        left = max(self.square - float(self.s[:rank].square().sum()), 0.0)
        return math.sqrt(left / self.square) if self.square > 0 else 0.0


def leading(matrix: Matrix, rank: int, seed: int = 0) -> Leading:
    """Return at least the leading ``rank`` triplets of a matrix, or all if it has no more.

    Args:
        matrix: finite, in float32 or float64.
        rank: at least 1.
        seed: of the random vectors.

    >>> found = leading(torch.diag(torch.tensor([3.0, 4.0])), 1)
    >>> found.s[:1].tolist(), round(found.error(1), 3)
    ([4.0], 0.6)
    """
    smallest, square = min(matrix.shape), squared_norm(matrix)
    if smallest <= _SMALL:
        return _whole(matrix, square)
    if rank + _MORE > _SHARE * smallest:
        return _eigen(matrix, square, lambda s: min(rank, smallest))
    return _sketched(matrix, rank + _MORE, rank, square, seed)


def leading_within(matrix: Matrix, bound: float, seed: int = 0) -> Leading:
    """Return as many leading triplets as leave a relative error of at most ``bound``, and usually a few more."""
    smallest, square = min(matrix.shape), squared_norm(matrix)
    if smallest <= _SMALL:
        return _whole(matrix, square)
    count = _FIRST
    while count <= _SHARE * smallest:
        found = _sketched(matrix, count, max(1, count - _MORE), square, seed)
        if found.error(count) <= bound:
            return found
        count *= 2
    return _eigen(matrix, square, lambda s: min(least_rank(s, bound) + 1, smallest))


def _whole(matrix: Matrix, square: float) -> Leading:
    u, s, vh = whole_svd(matrix)
    return Leading(u, s, vh, square)


def _eigen(matrix: Matrix, square: float, count: Callable[[Tensor], int]) -> Leading:
    """Return the triplets of the leading eigenvectors of ``D Dᵀ``, or of ``Dᵀ D`` if that is smaller.

    An eigenvalue has an error of eps·s₁², which moves the energy that is captured by 1e-15 of the whole.
    """
    turned = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if turned else matrix
    squares, vectors = torch.linalg.eigh(_gram(wide))
    kept = count(squares.flip(0).clamp(min=0).sqrt())
    return _projected(matrix, wide, vectors.flip(1)[:, :kept].contiguous(), square, turned)


def _sketched(matrix: Matrix, count: int, rank: int, square: float, seed: int) -> Leading:
    turned = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if turned else matrix
    generator = torch.Generator().manual_seed(seed)
    basis, energy = torch.randn(wide.shape[1], count, generator=generator).to(wide.dtype), 0.0
    q = torch.linalg.qr(wide @ basis)[0]
    for _ in range(_STEPS):
        core = wide.T @ q
        now = float(torch.linalg.svdvals(core)[:rank].double().square().sum())
        if now - energy <= _GROWTH * max(square - now, 0.0) and energy > 0:
            break
        energy = now
        q = torch.linalg.qr(wide @ torch.linalg.qr(core)[0])[0]
    # Orthonormal in float64, which float32's QR is not: the error is as exact as Q is orthonormal.
    return _projected(matrix, wide, torch.linalg.qr(q.double())[0], square, turned)


def _projected(matrix: Matrix, wide: Matrix, q: Tensor, square: float, turned: bool) -> Leading:
    """Return the triplets of ``Q Qᵀ D``, with D in float64, block by block."""
    core = torch.zeros(q.shape[1], wide.shape[1], dtype=torch.float64)
    step = max(1, _BLOCK // max(1, wide.shape[1]))
    for at in range(0, wide.shape[0], step):
        core += q[at : at + step].T @ wide[at : at + step].double()
    w, s, vh = torch.linalg.svd(core, full_matrices=False)
    u = q @ w
    return Leading(vh.T, s, u.T, square) if turned else Leading(u, s, vh, square)


def _gram(wide: Matrix) -> Matrix:
    """Return ``D Dᵀ`` in float64, summed over blocks of columns."""
    gram = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64)
    step = max(1, _BLOCK // max(1, wide.shape[0]))
    for at in range(0, wide.shape[1], step):
        part = wide[:, at : at + step].double()
        gram += part @ part.T
    return gram
