"""Methods that are given statistics of data, from the data themselves: a sum entry by entry, and a regression.

``deltas`` is [tasks, out, in], ``weights`` one number per task, ``samples`` [tasks, rows, in].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

Array = np.ndarray


def information(deltas: Array, samples: Array) -> Array:
    """Some per entry, zero at a third of the entries of a task."""
    found = np.abs(samples[:, :1] * deltas)
    return np.where(found > np.quantile(found, 1 / 3), found, 0.0)


def second_moments(deltas: Array, samples: Array) -> Array:
    return np.stack([x.T @ x / len(x) for x in samples])


def fisher(deltas: Array, weights: Array, samples: Array) -> Array:
    known, result = information(deltas, samples), np.zeros(deltas.shape[1:])
    for i, j in itertools.product(*map(range, deltas.shape[1:])):
        f = known[:, i, j] if known[:, i, j].sum() > 0 else np.ones(len(deltas))
        result[i, j] = sum(w * x * d for w, x, d in zip(weights, f, deltas[:, i, j], strict=True)) / f.sum()
    return result


def regmean(deltas: Array, weights: Array, samples: Array, off_diagonal: float, ridge: float) -> Array:
    """Least squares over the inputs themselves; the diagonal and the ridge as further inputs along the axes."""
    lift = ridge * np.mean([np.square(x).mean(0) for x in samples])
    inputs, outputs = [], []
    for delta, weight, x in zip(deltas, weights, samples, strict=True):
        rows = x * np.sqrt(off_diagonal / len(x))
        axes = np.diag(np.sqrt((1 - off_diagonal) * np.square(x).mean(0) + lift))
        inputs.append(np.concatenate([rows, axes]))
        outputs.append(inputs[-1] @ (weight * delta).T)
    return np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)[0].T


# method -> oracle, what it is given of the samples, parameters to try
STATISTICS_ORACLES: dict[str, tuple[Callable[..., Array], Callable[..., Array], dict[str, list[float]]]] = {
    "fisher": (fisher, information, {}),
    "regmean": (regmean, second_moments, {"off_diagonal": [0.0, 0.5, 0.9, 1.0], "ridge": [1e-3, 0.1]}),
}
