"""Methods that see a tensor as a whole, again in NumPy and by other routes than ours.

``deltas`` is [tasks, rows, columns], ``weights`` one number per task. Where Tangora takes an SVD, these take
eigenvalues of Gram matrices; what it turns by Procrustes, these turn by the inverse root of a Gram matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from oracles import ties

Array = np.ndarray


def directions(matrix: Array) -> tuple[Array, Array, Array]:
    """u, s, vh of what is not noise, from the eigenvectors of the Gram matrix."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    order = [i for i in np.argsort(values)[::-1] if values[i] > 1e-12 * max(values.max(), 1e-300)]
    s = np.sqrt(values[order])
    return matrix @ vectors[:, order] / s, s, vectors[:, order].T


def turned(columns: Array) -> Array:
    """``X (XᵀX)^(−1/2)``: the polar factor."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    return columns @ vectors @ np.diag(values**-0.5) @ vectors.T


def svd(deltas: Array, weights: Array, rank: int) -> Array:
    total = sum(w * d for w, d in zip(weights, deltas, strict=True))
    u, s, vh = directions(total)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def tsv_m(deltas: Array, weights: Array) -> Array:
    share = max(1, min(deltas.shape[1:]) // len(deltas))
    parts = [directions(d) for d in deltas]
    left, right = (np.hstack([p[i][:, :share] if i == 0 else p[i][:share].T for p in parts]) for i in (0, 2))
    values = np.concatenate([w * p[1][:share] for w, p in zip(weights, parts, strict=True)])
    return turned(left) @ np.diag(values) @ turned(right).T


def iso_c(deltas: Array, weights: Array) -> Array:
    u, s, vh = directions(np.tensordot(weights, deltas, 1))
    return sum(s.mean() * np.outer(u[:, i], vh[i]) for i in range(len(s)))


def iso_cts(deltas: Array, weights: Array, common: float) -> Array:
    u, s, vh = directions(np.tensordot(weights, deltas, 1))
    kept = max(1, round(common * len(s)))
    own = (len(s) - kept) // len(deltas)
    left, right, values = [u[:, :kept]], [vh[:kept].T], [s[:kept]]
    outside = np.eye(len(u)) - u[:, :kept] @ u[:, :kept].T
    for w, d in zip(weights, deltas, strict=True):
        a, b, c = directions(w * outside @ d)
        left, right, values = [*left, a[:, :own]], [*right, c[:own].T], [*values, b[:own]]
    return np.concatenate(values).mean() * turned(np.hstack(left)) @ turned(np.hstack(right)).T


def knots(deltas: Array, weights: Array, density: float) -> Array:
    u, s, _ = directions(np.hstack(list(deltas)))
    blocks = np.stack([np.diag(1 / s) @ u.T @ d for d in deltas])
    spread = np.repeat(weights[:, None], blocks[0].size, 1)
    merged = np.array(ties(blocks.reshape(len(blocks), -1), spread, density))
    return u @ np.diag(s) @ merged.reshape(blocks[0].shape)


def model_stock(deltas: Array, weights: Array) -> Array:
    n, cosines = len(deltas), []
    for i in range(n):
        for j in range(i):
            lengths = math.sqrt((deltas[i] ** 2).sum() * (deltas[j] ** 2).sum())
            cosines.append((deltas[i] * deltas[j]).sum() / lengths)
    cosine = max(0.0, float(np.mean(cosines)))
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * np.tensordot(weights, deltas, 1) / n


def slerp(deltas: Array, weights: Array) -> Array:
    """By rotation in the plane of the two: an orthonormal frame, and the point at the angle on it, lengths mixed."""
    one, two = (d.ravel() for d in deltas)
    e1 = one / np.linalg.norm(one)
    across = two - (two @ e1) * e1
    e2 = across / np.linalg.norm(across)
    angle = math.atan2(two @ e2, two @ e1)
    p = weights[1] / weights.sum()
    # the two terms of the formula, each in the frame
    first = math.sin((1 - p) * angle) / math.sin(angle) * np.linalg.norm(one) * e1
    second = math.sin(p * angle) / math.sin(angle) * np.linalg.norm(two) * (math.cos(angle) * e1 + math.sin(angle) * e2)
    return (first + second).reshape(deltas[0].shape)


def della(deltas: Array, weights: Array, uniforms: Array, density: float, window: float) -> Array:
    sparse = np.zeros_like(deltas)
    n = deltas.shape[2]
    for t, i in np.ndindex(deltas.shape[:2]):
        for place, j in enumerate(sorted(range(n), key=lambda j, row=deltas[t, i]: abs(row[j]))):
            chance = density - window / 2 + window * place / (n - 1)
            if uniforms[t, i, j] < chance:
                sparse[t, i, j] = deltas[t, i, j] / chance
    spread = np.repeat(weights[:, None], deltas[0].size, 1)
    return np.array(ties(sparse.reshape(len(sparse), -1), spread, 1.0)).reshape(deltas[0].shape)


OTHERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "svd": (svd, {"rank": 2}),
    "tsv_m": (tsv_m, {}),
    "iso_c": (iso_c, {}),
    "iso_cts": (iso_cts, {"common": 0.5}),
    "knots": (knots, {"density": 0.5}),
    "model_stock": (model_stock, {}),
    "slerp": (slerp, {}),
    "della": (della, {"density": 0.5, "window": 0.4}),
}
"""Name -> its oracle, and parameters at which it does something."""
