"""Methods that see matrices, by another road than their code: Gram matrices and their eigenvectors, in NumPy.

``deltas`` is [tasks, out, in], ``weights`` one number per task.

A Gram matrix squares the condition number, so input is refused whose singular values are neither zero nor at least a
thousandth of the largest, or of which two of nearly equal size would be told apart: see `settled` and `apart`. What is
left is known to 100 · eps · 1e6, or 2e-8, of the largest entry, on any processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np
from hypothesis import assume

Array = np.ndarray


def settled(values: Array) -> Array:
    """Which eigenvalues of a Gram matrix are not zero; all of those are at least 1e-6 of the largest."""
    shares = values / values.max()
    assume(not ((shares > 1e-13) & (shares < 1e-6)).any())
    return shares > 1e-11


def apart(values: Array, count: int) -> None:
    """That the ``count`` largest of ascending ``values`` are set off from the rest, which have other vectors."""
    ordered = values[::-1] / values.max()
    assume(count >= len(ordered) or ordered[count - 1] < 1e-11 or ordered[count - 1] - ordered[count] > 1e-5)


def powers(gram: Array, exponent: float) -> Array:
    """A power of a symmetric matrix, on the space where it is not zero."""
    values, vectors = np.linalg.eigh(gram)
    large = settled(values)
    return (vectors[:, large] * values[large] ** exponent) @ vectors[:, large].T


def rank_of(matrix: Array) -> int:
    return int(np.linalg.matrix_rank(matrix, tol=1e-6 * np.abs(matrix).max()))


def leading(matrix: Array, count: int) -> tuple[Array, Array, Array]:
    """Left vectors, values and right vectors, from the eigenvectors of MᵀM."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    settled(values)
    apart(values, count)
    right = vectors[:, ::-1][:, : min(count, rank_of(matrix))]
    strength = np.sqrt(values[::-1][: right.shape[1]])
    return matrix @ right / strength, strength, right


def orthonormal(columns: Array) -> Array:
    return columns @ powers(columns.T @ columns, -0.5)


def total(deltas: Array, weights: Array) -> Array:
    return sum(w * d for w, d in zip(weights, deltas, strict=True))


def svd(deltas: Array, weights: Array, components: int) -> Array:
    """What is left of M on the eigenvectors of MᵀM with the largest values."""
    matrix = total(deltas, weights)
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    apart(values, components)
    kept = vectors[:, ::-1][:, :components]
    return matrix @ kept @ kept.T


def iso_c(deltas: Array, weights: Array) -> Array:
    """The polar factor M(MᵀM)^(−1/2) times the mean singular value, trace((MᵀM)^(1/2)) / rank."""
    matrix = total(deltas, weights)
    gram = matrix.T @ matrix
    return matrix @ powers(gram, -0.5) * np.trace(powers(gram, 0.5)) / rank_of(matrix)


def tsv_m(deltas: Array, weights: Array) -> Array:
    share = max(1, min(deltas.shape[1:]) // len(deltas))
    left, strength, right = zip(*(leading(d, share) for d in deltas), strict=True)
    scales = np.concatenate([w * s for w, s in zip(weights, strength, strict=True)])
    return orthonormal(np.hstack(left)) @ np.diag(scales) @ orthonormal(np.hstack(right)).T


def iso_cts(deltas: Array, weights: Array, common: float) -> Array:
    matrix = total(deltas, weights)
    rank, tasks = rank_of(matrix), len(deltas)
    own = min(round((rank - int(rank * common)) / tasks), rank // tasks)
    parts = [leading(matrix, rank - own * tasks)]
    base = parts[0][0]
    for w, delta in zip(weights, deltas, strict=True):
        rest = w * delta - base @ base.T @ (w * delta)
        if own and np.abs(rest).max() > 1e-9:
            parts.append(leading(rest, own))
    strengths = np.concatenate([s for _, s, _ in parts])
    left, right = (orthonormal(np.hstack([p[i] for p in parts])) for i in (0, 2))
    return strengths.mean() * left @ right.T


def knots(deltas: Array, weights: Array, density: float) -> Array:
    """U from the eigenvectors of Σ νₜνₜᵀ, Vₜ = Σ⁻¹Uᵀνₜ; the election entry by entry."""
    gram = sum(d @ d.T for d in deltas)
    values, vectors = np.linalg.eigh(gram)
    large = settled(values)
    basis, strength = vectors[:, large], np.sqrt(values[large])
    parts = np.stack([(basis.T @ d) / strength[:, None] for d in deltas])
    sparse = np.zeros_like(parts)
    for t, part in enumerate(parts):
        ordered = np.sort(np.abs(part).ravel())[::-1]
        last = ordered[math.ceil(Decimal(str(density)) * part.size) - 1]
        sparse[t] = np.where(np.abs(part) >= last * (1 - 1e-5), part, 0)  # equal magnitudes up to rounding
    merged = np.zeros(parts.shape[1:])
    for i, j in np.ndindex(*merged.shape):
        sign = np.sign(sparse[:, i, j].sum())
        agreeing = [t for t in range(len(deltas)) if sign and np.sign(sparse[t, i, j]) == sign]
        if agreeing:
            merged[i, j] = sum(weights[t] * sparse[t, i, j] for t in agreeing) / len(agreeing)
    return (basis * strength) @ merged


MATRIX_ORACLES: dict[str, tuple[Callable[..., Array], dict[str, Sequence[float]]]] = {
    "svd": (svd, {"components": (1, 2, 3)}),
    "iso_c": (iso_c, {}),
    "iso_cts": (iso_cts, {"common": (0.0, 0.3, 0.5, 0.8, 1.0)}),
    "knots": (knots, {"density": (0.1, 0.35, 0.7, 1.0)}),
    "tsv_m": (tsv_m, {}),
}
