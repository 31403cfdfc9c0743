"""Does a task vector change answers on the other task's inputs? The weight-disentanglement error."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tangora.analysis.plane import Plane
from tangora.errors import ArgumentError

__all__ = ["disentanglement_error"]


def disentanglement_error(plane: Plane) -> Float[np.ndarray, "points points"]:
    r"""Weight-disentanglement error ξ at every point of the plane of two task vectors.

    .. math:: \xi(\lambda_1, \lambda_2) = \sum_{t=1}^{2} P_{x \in D_t}\big[ f(x; \varphi_0 + \lambda_t \nu_t)
        \neq f(x; \varphi_0 + \lambda_1 \nu_1 + \lambda_2 \nu_2) \big]

    (arXiv:2305.12827, section 3.2. Here f is the prediction, a label or a generated text, as in arXiv:2310.04742,
    section 4.)

    It is the fraction of answers on each task's own inputs that the other task's vector changes, summed over the two
    tasks: in [0, 2], and 0 at the origin. If it is near 0 over the unit square, two tasks can be fused with any
    coefficients and keep their answers. It is 0 everywhere for a model that is linear in φ, if the gradients on D₁ are
    orthogonal to ν₂ and vice versa. A wrong answer that does not change is not an error here: read it with the scores.

    Args:
        plane: from `tangora.analysis.survey`; its grid must contain 0.

    Returns:
        ξ for each λ₁ (rows) and λ₂ (columns).

    Raises:
        ArgumentError: the grid lacks 0, so that a task vector is never alone.

    >>> from tangora.analysis import survey
    >>> from tangora.evaluation.evaluator import Result
    >>> def answer(c):  # the second vector flips every answer of the first task, the first one none
    ...     return {"a": Result(1.0, 0.0, [c[1] > 0]), "b": Result(1.0, 0.0, [0])}
    >>> disentanglement_error(survey(answer, ("a", "b"), (0.0, 1.0))).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    if 0 not in plane.coefficients:
        raise ArgumentError("the grid of a disentanglement error must have 0", got=plane.coefficients, where="plane")
    zero = plane.coefficients.index(0)
    first, second = (plane.results[task] for task in plane.tasks)
    steps = range(len(plane.coefficients))
    return np.array(
        [
            [
                _differ(first[i][zero].values, first[i][j].values)
                + _differ(second[zero][j].values, second[i][j].values)
                for j in steps
            ]
            for i in steps
        ]
    )


def _differ(alone: list[object], together: list[object]) -> float:
    return sum(a != b for a, b in zip(alone, together, strict=True)) / len(alone)
