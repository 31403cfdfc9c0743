"""Fusion rules without data, by another road than their code, in NumPy: see `matrix_oracles` for inputs and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np
from hypothesis import assume
from matrix_oracles import Array, apart, leading, orthonormal, rank_of, settled


def largest(values: Array, density: float) -> Array:
    """The values of the largest magnitudes, the others zero; refused if two at the limit would be told apart."""
    ordered = np.sort(np.abs(values).ravel())[::-1]
    count = math.ceil(Decimal(str(density)) * values.size)
    assume(count == values.size or ordered[count - 1] - ordered[count] > 1e-5 * ordered[0])
    return np.where(np.abs(values) >= ordered[count - 1], values, 0.0)


def wudi(deltas: Array, weights: Array, ridge: float) -> Array:
    """Row by row, the least-squares problem: ``(x − λₜνₜ[i]) νₜᵀ / ‖νₜ‖`` for all tasks, and the ridge's rows."""
    tasks, out, inside = deltas.shape
    norms = np.linalg.norm(deltas.reshape(tasks, -1), axis=1)
    unit = deltas / norms[:, None, None]
    rows = np.vstack(list(unit))
    squares = np.linalg.eigvalsh(rows.T @ rows)
    settled(squares)
    shift = np.sqrt(ridge * squares.max())
    system = np.vstack([rows, shift * np.eye(inside)])
    total = np.einsum("t,toi->oi", weights, deltas)
    result = np.zeros((out, inside))
    for i in range(out):
        wanted = [w * u @ d[i] for w, u, d in zip(weights, unit, deltas, strict=True)]
        result[i] = np.linalg.lstsq(system, np.concatenate([*wanted, shift * total[i]]), rcond=1e-6)[0]
    return result


def cart(deltas: Array, weights: Array, share: float) -> Array:
    mean = deltas.mean(0)
    result = mean.copy()
    for weight, delta in zip(weights, deltas, strict=True):
        difference = delta - mean
        if np.abs(difference).max() > 1e-9:
            left, values, right = leading(difference, math.ceil(Decimal(str(share)) * rank_of(difference)))
            result += weight * (left * values) @ right.T
    return result


def do_merging(deltas: Array, weights: Array) -> Array:
    """Row by row: the orthonormal rows nearest to the tasks' directions, added, at the mean length."""
    result = np.zeros(deltas.shape[1:])
    for i in range(deltas.shape[1]):
        lengths = np.linalg.norm(deltas[:, i], axis=1)
        directions = orthonormal((deltas[:, i] / lengths[:, None]).T)
        result[i] = lengths.mean() * directions @ weights / math.sqrt(len(deltas))
    return result


def robust_merge(deltas: Array, weights: Array, density: float) -> Array:
    """Factors from eigenvectors; the compensation number by number."""
    pruned, scales = [], []
    for delta in deltas:
        left, values, right = leading(delta, rank_of(delta))
        assume((values[:-1] - values[1:] > 1e-3 * values[0]).all())  # else the vectors are not known to 1e-7
        b, a = left * np.sqrt(values), (right * np.sqrt(values)).T
        pruned.append((largest(b, density), largest(a, density)))
        scales.append([abs(x).sum() / abs(y).sum() if y.any() else 0.0 for x, y in zip(a, pruned[-1][1], strict=True)])
    result = np.zeros(deltas.shape[1:])
    for weight, (b, a), scale in zip(weights, pruned, scales, strict=True):
        for i, s in enumerate(scale):
            others = [row[i] for row in scales if i < len(row) and row[i]]
            result += weight * (s / np.mean(others) if s else 0.0) * np.outer(b[:, i], a[i])
    return result


def pcb(deltas: Array, weights: Array, density: float) -> Array:
    def softmax(values: Array) -> Array:
        return np.exp(values) / np.exp(values).sum()

    def scaled(values: Array) -> Array:
        return values / np.abs(values).max()

    flat = deltas.reshape(len(deltas), -1)
    kept = []
    for one in flat:
        agreement = sum(softmax(scaled(one * other)) for other in flat)
        kept.append(largest(softmax(len(flat) * scaled(one * one)) * agreement, density))
    total = sum(kept)
    summed = sum(w * k * v for w, k, v in zip(weights, kept, flat, strict=True))
    return np.divide(summed, total, out=np.zeros_like(summed), where=total > 0).reshape(deltas.shape[1:])


def equal_norms(deltas: Array, weights: Array) -> Array:
    norms = [math.sqrt((d**2).sum()) for d in deltas]
    return sum(w * d * sum(norms) / len(norms) / n for w, d, n in zip(weights, deltas, norms, strict=True))


def mean_norm(deltas: Array, weights: Array) -> Array:
    norms = [math.sqrt((d**2).sum()) for d in deltas]
    fused = sum(w * d for w, d in zip(weights, deltas, strict=True))
    return fused * sum(norms) / len(norms) / math.sqrt((sum(deltas) ** 2).sum())


def pico(deltas: Array, weights: Array, strength: float) -> Array:
    """The projections themselves, ``νν⁺``, added up and raised to a power by their eigenvectors."""
    count = sum(d @ np.linalg.pinv(d, rcond=1e-6) for d in deltas)
    for d in deltas:
        settled(np.linalg.eigvalsh(d @ d.T))
    values, vectors = np.linalg.eigh(count)
    lowering = (vectors * np.maximum(values, 1) ** -strength) @ vectors.T
    changed = [lowering @ d for d in deltas]
    scale = math.sqrt(sum((d**2).sum() for d in deltas) / sum((d**2).sum() for d in changed))
    return scale * sum(w * d for w, d in zip(weights, changed, strict=True))


def ctm(deltas: Array, weights: Array, shared_rank: int, balance: float) -> Array:
    """On the whole matrices: the projections on the shared bases, without coordinates."""

    def projection(*sides: Array) -> Array:
        left, values, _ = np.linalg.svd(np.hstack(sides))
        values = np.append(values, np.zeros(len(left)))[: len(left)]
        apart(values[::-1], min(shared_rank, len(left)))
        kept = left[:, :shared_rank][:, values[:shared_rank] > 1e-9 * values[0]]
        return kept @ kept.T

    scaled = [d / math.sqrt((d**2).sum()) ** balance for d in deltas]
    inputs, outputs = projection(*(d.T for d in scaled)), projection(*scaled)
    for _ in range(10):
        outputs = projection(*(d @ inputs for d in scaled))
        inputs = projection(*((outputs @ d).T for d in scaled))
    return outputs @ sum(w * d for w, d in zip(weights, deltas, strict=True)) @ inputs


DATA_FREE_ORACLES: dict[str, tuple[Callable[..., Array], dict[str, Sequence[float]]]] = {
    "cart": (cart, {"share": (0.08, 0.34, 0.5, 1.0)}),
    "ctm": (ctm, {"shared_rank": (1, 2, 3, 50), "balance": (0.0, 0.5, 1.0)}),
    "do_merging": (do_merging, {}),
    "equal_norms": (equal_norms, {}),
    "mean_norm": (mean_norm, {}),
    "pcb": (pcb, {"density": (0.1, 0.55, 1.0)}),
    "pico": (pico, {"strength": (0.0, 0.5, 1.0, 2.0)}),
    "robust_merge": (robust_merge, {"density": (0.2, 0.55, 1.0)}),
    "wudi": (wudi, {"ridge": (0.0, 0.01, 1.0)}),
}
