"""Every fusion method again, as slowly and plainly as it can be written: NumPy arrays, Python loops, float64.

``deltas`` is [tasks, n] and ``weights`` [tasks, n]; the results are lists of n numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

import numpy as np

Array = np.ndarray
Result = list[float]


def average(deltas: Array, weights: Array) -> Result:
    out = []
    for j in range(deltas.shape[1]):
        column = [float(d) * float(w) for d, w in zip(deltas[:, j], weights[:, j], strict=True)]
        out.append(sum(column) / float(weights[:, j].sum()))
    return out


def task_arithmetic(deltas: Array, weights: Array) -> Result:
    out = []
    for j in range(deltas.shape[1]):
        out.append(sum(float(deltas[t, j]) * float(weights[t, j]) for t in range(len(deltas))))
    return out


def trimmed(deltas: Array, density: float) -> Array:
    """Sort by magnitude, keep the first ⌈density·n⌉ and whatever equals the last of them."""
    out = np.zeros_like(deltas)
    for t, delta in enumerate(deltas):
        count = math.ceil(Decimal(str(density)) * len(delta))
        last = sorted((abs(float(x)) for x in delta), reverse=True)[count - 1]
        for j, x in enumerate(delta):
            if abs(x) >= last:
                out[t, j] = x
    return out


def elected(sparse: Array, weights: Array) -> Result:
    out = []
    for j in range(sparse.shape[1]):
        sign = np.sign(math.fsum(sparse[:, j]))
        agreeing = [t for t in range(len(sparse)) if sign != 0 and np.sign(sparse[t, j]) == sign]
        total = sum(float(sparse[t, j]) * float(weights[t, j]) for t in agreeing)
        out.append(total / len(agreeing) if agreeing else 0.0)
    return out


def ties(deltas: Array, weights: Array, density: float) -> Result:
    return elected(trimmed(deltas, density), weights)


def magnitude_prune(deltas: Array, weights: Array, density: float) -> Result:
    return task_arithmetic(trimmed(deltas, density), weights)


def sampled(deltas: Array, uniforms: Array, density: float) -> Array:
    out = np.zeros_like(deltas)
    for t in range(deltas.shape[0]):
        for j in range(deltas.shape[1]):
            if uniforms[t, j] < density:
                out[t, j] = deltas[t, j] / density
    return out


def dare(deltas: Array, weights: Array, density: float, uniforms: Array) -> Result:
    return task_arithmetic(sampled(deltas, uniforms, density), weights)


def dare_ties(deltas: Array, weights: Array, density: float, uniforms: Array) -> Result:
    return elected(sampled(deltas, uniforms, density), weights)


ORACLES: dict[str, Callable[..., Result]] = {
    "average": average,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "ties_per_tensor": ties,
    "magnitude_prune": magnitude_prune,
    "dare": dare,
    "dare_ties": dare_ties,
}
