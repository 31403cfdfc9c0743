"""Fusion rules without data, by another road than their code, in NumPy: see `matrix_oracles` for inputs and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matrix_oracles import Array, settled


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


DATA_FREE_ORACLES: dict[str, tuple[Callable[..., Array], dict[str, Sequence[float]]]] = {
    "wudi": (wudi, {"ridge": (0.0, 0.01, 1.0)}),
}
