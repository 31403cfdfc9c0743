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


def ties_sum(deltas: Array, weights: Array, density: float) -> Result:
    sparse = trimmed(deltas, density)
    out = []
    for j in range(deltas.shape[1]):
        sign = np.sign(sum(float(x) for x in sparse[:, j]))
        pairs = zip(weights[:, j], sparse[:, j], strict=True)
        out.append(sum(float(w * x) for w, x in pairs if np.sign(x) == sign != 0))
    return out


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


def breadcrumbs(deltas: Array, weights: Array, bottom: float, top: float) -> Result:
    """Sort by magnitude, cut both ends off, keep whatever lies between what is left."""
    out = np.zeros_like(deltas)
    for t, delta in enumerate(deltas):
        ordered = sorted(abs(float(x)) for x in delta)
        low = math.floor(Decimal(str(bottom)) * len(delta))
        high = len(delta) - math.floor(Decimal(str(top)) * len(delta))
        left = ordered[low:high]
        for j, x in enumerate(delta):
            if left[0] <= abs(x) <= left[-1]:
                out[t, j] = x
    return task_arithmetic(out, weights)


def della(deltas: Array, weights: Array, density: float, window: float, uniforms: Array) -> Result:
    out = np.zeros_like(deltas)
    for t, delta in enumerate(deltas):
        order = sorted(range(len(delta)), key=lambda j: (-abs(delta[j]), j))
        for rank, j in enumerate(order):
            drop = (1 - density) - window / 2 + window * (rank + 0.5) / len(delta)
            if uniforms[t, j] < 1 - drop:
                out[t, j] = delta[j] / (1 - drop)
    return elected(out, weights)


def slerp(deltas: Array, weights: Array, position: float) -> Result:
    """Turn the first unit vector towards the second in their plane; the lengths come back in the same shares."""
    one, two = deltas
    a, b = np.sqrt((one**2).sum()), np.sqrt((two**2).sum())
    if a == 0 or b == 0:
        return list((1 - position) * one * weights[0] + position * two * weights[1])
    across = two / b - one / a * (one @ two) / (a * b)
    sine = np.sqrt((across**2).sum())
    if sine < 1e-9:
        return list((1 - position) * one * weights[0] + position * two * weights[1])
    angle = math.atan2(sine, (one @ two) / (a * b))
    # cos(pΩ) e₁ + sin(pΩ) e₂, with e₂ = (n₂ − cos Ω n₁)/sin Ω written out in n₁ and n₂
    second = math.sin(position * angle) / sine
    first = math.cos(position * angle) - second * math.cos(angle)
    return list(first * one * weights[0] + second * two * weights[1])


def model_stock(deltas: Array, weights: Array) -> Result:
    cosines = []
    for i in range(len(deltas)):
        for j in range(i):
            length = math.sqrt(sum(deltas[i] ** 2)) * math.sqrt(sum(deltas[j] ** 2))
            cosines.append(sum(deltas[i] * deltas[j]) / length if length else 0.0)
    cosine = max(0.0, sum(cosines) / len(cosines)) if cosines else 1.0
    ratio = len(deltas) * cosine / (1 + (len(deltas) - 1) * cosine)
    return [ratio * x / len(deltas) for x in task_arithmetic(deltas, weights)]


def consensus(deltas: Array, weights: Array, agreement: int, share: float) -> Result:
    out = task_arithmetic(deltas, weights)
    for j in range(deltas.shape[1]):
        wanted = 0
        for t in range(len(deltas)):
            others = sum(float(deltas[i, j]) for i in range(len(deltas)) if i != t)
            wanted += abs(deltas[t, j]) >= share * abs(others)
        if wanted < agreement:
            out[j] = 0.0
    return out


ORACLES: dict[str, Callable[..., Result]] = {
    "average": average,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "ties_per_tensor": ties,
    "ties_sum": ties_sum,
    "magnitude_prune": magnitude_prune,
    "dare": dare,
    "dare_ties": dare_ties,
    "breadcrumbs": breadcrumbs,
    "consensus": consensus,
    "della": della,
    "model_stock": model_stock,
    "slerp": slerp,
}
