"""The best approximation of a given rank (Eckart-Young), by the cheapest route that is exact enough.

    factors b [out, r], a [r, in]     Gram matrices of the factors: r x r, whatever the width of the layer
    a matrix                          Lanczos for few singular values, else the whole SVD

If a route would lose digits on its input, the slower one is used instead.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tangora.support.threads import alone

if TYPE_CHECKING:
    from tangora.updates.update import Update

__all__ = [
    "core_values",
    "prepare",
    "split",
    "squared_norm",
    "thin_svd",
    "truncate_factors",
    "truncate_matrix",
    "truncate_sum",
    "whole_svd",
]

# Singular values from a Gram matrix have an error of eps·s₁²/sᵢ; below this ratio it would be visible in float32.
_GRAM_FLOOR = 1e-5
# Lanczos pays where the matrix is large and few values are wanted.
_LANCZOS_SIZE, _LANCZOS_SHARE = 384, 0.1
# Numbers in float64 whose memory a thread may keep, and those of a block of a norm.
_KEPT, _NORM_BLOCK = 2**22, 2**16

Parts = tuple[Float[Tensor, "out rank"], Float[Tensor, " rank"], Float[Tensor, "rank in"], float]
"""The left vectors, singular values and right vectors that are kept, and the relative error of the truncation."""


def prepare(updates: Iterable[Update] | None = None) -> None:
    """Load SciPy before truncations run in threads: they limit the threads of libraries that are loaded by then.

    Factors are truncated without SciPy: if ``updates`` are given and all have factors, nothing is loaded.
    """
    if updates is None or any(update.factors() is None for update in updates):
        import scipy.sparse.linalg  # noqa: F401  # deferred: SciPy takes a third of a second, and factors need none


def truncate_factors(b: Float[Tensor, "out r"], a: Float[Tensor, "r in"], rank: int) -> Parts:
    """Return the leading ``rank`` singular triplets of ``b @ a``, in float64; see `truncate_sum`."""
    return truncate_sum([(b, a)], rank)


def truncate_sum(
    pairs: Sequence[tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]], rank: int, scaling: float = 1.0
) -> Parts:
    """Return the leading ``rank`` singular triplets of ``scaling * sum_t b_t @ a_t``, in float64.

    The sum is ``b @ a`` with ``b = [b₁ | b₂ | …]`` and ``a = [a₁ ; a₂ ; …]``. With ``bᵀb = LLᵀ``, the squares of the
    singular values are the eigenvalues of ``Lᵀ(aaᵀ)L``; from an eigenvector w, ``u = b(aaᵀ)Lw / s²`` and
    ``vᵀ = uᵀba / s = (Lw)ᵀa / s``.
    """
    b, a = _wide("b", [b for b, _ in pairs], 1), _wide("a", [a for _, a in pairs], 0)
    if scaling != 1.0:
        a *= scaling
    gram_a, root = _product(a, a.T), _root(_product(b.T, b))
    squares, vectors = torch.linalg.eigh(_product(_product(root.T, gram_a), root))
    squares = squares.flip(0).clamp(min=0)
    values = squares[:rank].sqrt()
    if not bool(values[-1] > _GRAM_FLOOR * values[0]):
        return _by_qr(b, a, rank)
    chosen = _product(root, vectors[:, -rank:].flip(1))  # Lw
    left = _product(b, _product(gram_a, chosen) / squares[:rank])
    right = _product(chosen.T / values[:, None], a)
    total = float(squares.sum())
    return left, values, right, math.sqrt(float(squares[rank:].sum()) / total)


def core_values(b: Float[Tensor, "out r"], a: Float[Tensor, "r in"]) -> Float[Tensor, " r"]:
    """Return the singular values of ``b @ a``, descending, from r x r products; below 1e-8 of the largest is noise."""
    root = _root(_product(b.T, b))
    squares: Tensor = torch.linalg.eigvalsh(root.T @ _product(a, a.T) @ root)
    return squares.flip(0).clamp(min=0).sqrt()


def truncate_matrix(matrix: Float[Tensor, "out in"], rank: int) -> Parts:
    """Return the leading ``rank`` singular triplets of a matrix, in its own precision with Lanczos, else in float64."""
    smallest, total = min(matrix.shape), squared_norm(matrix)
    if smallest < _LANCZOS_SIZE or rank > _LANCZOS_SHARE * smallest or total == 0:
        u, s, vh = whole_svd(matrix)
        return u[:, :rank], s[:rank], vh[:rank], _error(s, rank)
    u, s, vh = _lanczos(matrix, rank)
    left_out = max(total - float(s.square().sum()), 0.0)
    return u, s, vh, math.sqrt(left_out / total)


def squared_norm(matrix: Float[Tensor, "out in"]) -> float:
    """Return ``‖matrix‖²``, summed in float64; on the CPU by blocks that stay in the cache, an eighth of the time."""
    if matrix.device.type != "cpu":
        return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    rows = max(1, _NORM_BLOCK // max(1, matrix.shape[1]))
    blocks = (block.double().reshape(-1) for block in matrix.detach().split(rows))
    return sum((float(torch.dot(block, block)) for block in blocks), 0.0)


def whole_svd(matrix: Float[Tensor, "out in"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``u, s, vh`` of a matrix in float64."""
    return thin_svd(matrix.double())


def split(
    u: Float[Tensor, "out rank"], s: Float[Tensor, " rank"], vh: Float[Tensor, "rank in"], dtype: torch.dtype
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """Return factors b and a of ``u s vh``; s is split evenly, so that neither overflows in half precision."""
    root = s.sqrt()
    return (u * root).to(dtype).contiguous(), (root[:, None] * vh).to(dtype).contiguous()


def thin_svd(matrix: Float[Tensor, "out in"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``u, s, vh`` in the matrix's precision.

    LAPACK's divide and conquer does not converge on some clusters of equal singular values; QR iteration, several times
    as slow, then does.
    """
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        from scipy.linalg import svd  # deferred: SciPy takes a third of a second, and most fusions truncate nothing

        with alone():  # threads that were started without SciPy do not limit its own
            parts = svd(matrix.detach().cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        u, s, vh = (torch.from_numpy(part).to(matrix.device) for part in parts)
    return u, s, vh


class _Memory(threading.local):
    """What a thread uses for one sum after the other: new pages take the system longer than it takes to fill them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a tensor of float64, whose numbers are arbitrary; it is valid until the next of this name."""
        size = math.prod(shape)
        memory = self._kept.get(name)
        if memory is None or len(memory) < size:
            memory = torch.empty(size, dtype=torch.float64)
            if size <= _KEPT:
                self._kept[name] = memory
        return memory[:size].view(*shape)


_memory = _Memory()


def _wide(name: str, parts: Sequence[Tensor], along: int) -> Tensor:
    """Return the parts side by side in float64, on the CPU in the memory of this name."""
    if any(part.device.type != "cpu" for part in parts):
        return torch.cat(list(parts), along).double()
    shape = list(parts[0].shape)
    shape[along] = sum(part.shape[along] for part in parts)
    whole, at = _memory.tensor(name, shape), 0
    for part in parts:
        whole.narrow(along, at, part.shape[along]).copy_(part.detach())
        at += part.shape[along]
    return whole


def _product(x: Float[Tensor, "m k"], y: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """Return ``x @ y``; on the CPU by NumPy, which does half the work if y is the transpose of x."""
    if x.device.type != "cpu":
        return x @ y
    return torch.from_numpy(x.detach().numpy() @ y.detach().numpy())


def _root(gram: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """Return some L with ``LLᵀ = gram``: the Cholesky factor if the matrix is safely positive definite."""
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed):
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp(min=0).sqrt()
    return root


def _by_qr(b: Tensor, a: Tensor, rank: int) -> Parts:
    """Truncate through two thin QR decompositions and the SVD of their core: accurate for every spectrum."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = thin_svd(r_b @ r_a.T)
    return q_b @ u[:, :rank], s[:rank], vh[:rank] @ q_a.T, _error(s, rank)


def _lanczos(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    from scipy.sparse.linalg import svds  # deferred: SciPy takes a third of a second, and most fusions truncate nothing

    wide = matrix.detach().float().cpu() if matrix.dtype != torch.float64 else matrix.detach().cpu()
    start = np.random.default_rng(0).standard_normal(min(matrix.shape)).astype(wide.numpy().dtype)
    u, s, vh = svds(wide.numpy(), k=rank, v0=start, solver="arpack")
    order = np.argsort(s)[::-1]
    parts = (np.ascontiguousarray(u[:, order]), np.ascontiguousarray(s[order]), np.ascontiguousarray(vh[order]))
    left, values, right = (torch.from_numpy(part).to(matrix.device).double() for part in parts)
    return left, values, right


def _error(s: Float[Tensor, "all"], rank: int) -> float:
    total = float(s.norm())
    return float(s[rank:].norm()) / total if total > 0 else 0.0
