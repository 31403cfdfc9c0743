"""Where do two tasks have a low loss together? The loss landscape in the plane of their task vectors."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tangora.analysis.plane import Plane

__all__ = ["joint_loss"]


def joint_loss(plane: Plane) -> Float[np.ndarray, "points points"]:
    """Return the joint loss ``(L₁ + L₂) / 2`` over the plane of two task vectors, with L_t the mean loss on task t.

    (The landscapes of arXiv:2310.04742, section 4, which plots them through φ₀ and two experts.) The axes are λ₁ and
    λ₂,
    so a point is a choice of coefficients: φ₀ at (0, 0), the experts at (1, 0) and (0, 1), task arithmetic on the
    diagonal. Lengths and angles are not those of weight space.

    One wide basin around the diagonal means that the experts add up; a minimum at one expert, or a ridge between the
    two, means that they do not. Losses of different tasks have different scales: the larger one dominates the picture.

    Args:
        plane: from `tangora.analysis.survey`.

    Returns:
        The loss for each λ₁ (rows) and λ₂ (columns), in nats.

    >>> from tangora.analysis import survey
    >>> from tangora.evaluation.evaluator import Result
    >>> def answer(c):
    ...     return {"a": Result(1.0, (c[0] - 1) ** 2, [0]), "b": Result(1.0, (c[1] - 1) ** 2, [0])}
    >>> joint_loss(survey(answer, ("a", "b"), (0.0, 1.0))).tolist()
    [[1.0, 0.5], [0.5, 0.0]]
    """
    losses = [[[result.loss for result in row] for row in plane.results[task]] for task in plane.tasks]
    joint: Float[np.ndarray, "points points"] = np.asarray(losses, dtype=np.float64).mean(0)
    return joint
