"""Projected Newton: minimize a smooth convex function with an L1 penalty on a box, and bound the error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Box", "Expansion", "Minimum", "minimize"]

_ARMIJO = 1e-4
_NEAR = 1e-3  # a coordinate this near to a bound counts as on it, while far from the solution


class Expansion(NamedTuple):
    """A second-order expansion of a function; gradient and Hessian are None if only the value was computed."""

    value: float
    gradient: Float[Tensor, " k"] | None = None
    hessian: Float[Tensor, "k k"] | None = None


@dataclass(frozen=True)
class Box:
    """The bounds and the penalty of coefficients: ``lower <= x <= upper``, ``l1 * sum |x|``.

    The upper bound is not negative and the lower one not positive, so that 0, the base model, is always allowed.
    """

    lower: float
    upper: float
    l1: float = 0.0

    def clip(self, x: Tensor) -> Tensor:
        """Return the nearest point of the box."""
        return x.clamp(self.lower, self.upper)


@dataclass(frozen=True)
class Minimum:
    """The point that was reached, and a bound on its distance from the best value.

    Attributes:
        x: the point.
        value: of the function and the L1 penalty.
        gradient: norm of the smallest subgradient of function, penalty and box: 0 at a solution, and only there.
        gap: if the function is convex, no point of the box has a value lower than ``value - gap``.
        steps: number of steps taken.
    """

    x: Float[Tensor, " k"]
    value: float
    gradient: float
    gap: float
    steps: int


def minimize(
    function: Callable[[Tensor, bool], Expansion],
    start: Float[Tensor, " k"],
    box: Box,
    *,
    tolerance: float = 1e-9,
    steps: int = 100,
) -> Minimum:
    """Minimize ``function(x) + l1 * sum |x|`` over the box.

    Bertsekas' projected Newton method (SIAM J. Control Optim. 20, 1982): coordinates at a bound that descent would
    leave the box through are held, the others take a Newton step, and the line search runs along the projected path.
    With an L1 penalty, each step stays in one orthant, in which the penalty is linear.

    Args:
        function: ``(x, expand)`` -> its value, with gradient and positive semidefinite Hessian if ``expand``.
        start: float64; moved into the box.
        box: bounds and penalty.
        tolerance: the largest entry of the projected gradient at which to stop.
        steps: the largest number of steps.
    """
    x, taken = box.clip(start), 0
    while True:
        here = function(x, True)
        assert here.gradient is not None
        assert here.hessian is not None
        # |x| has a kink at 0. Within an orthant it is linear, so a step is as for a smooth function.
        signs, lower, upper = _orthant(x, here.gradient, box)
        gradient = here.gradient + box.l1 * signs
        projected = _projected(x, gradient, lower, upper)
        value = here.value + box.l1 * float(x.abs().sum())
        if taken < steps and float(projected.abs().max()) > tolerance:
            moved = _step(function, box, x, value, gradient, here.hessian, lower, upper)
            if moved is not None:
                x, taken = moved, taken + 1
                continue
        return Minimum(x, value, float(projected.norm()), _gap(x, here.gradient, box), taken)


def _orthant(x: Tensor, gradient: Tensor, box: Box) -> tuple[Tensor, Tensor, Tensor]:
    """Return the signs of the orthant around x in which the penalty is linear, and its bounds inside the box."""
    lower, upper = torch.full_like(x, box.lower), torch.full_like(x, box.upper)
    if not box.l1:
        return torch.zeros_like(x), lower, upper
    # A coordinate at 0 leaves it only if the gradient outweighs the penalty, and to the side that lowers the function.
    leaves = torch.where(gradient.abs() > box.l1, -gradient.sign(), 0.0)
    leaves = torch.where(((leaves < 0) & (lower == 0)) | ((leaves > 0) & (upper == 0)), 0.0, leaves)
    signs = torch.where(x != 0, x.sign(), leaves)
    return signs, torch.where(signs < 0, lower, 0.0), torch.where(signs > 0, upper, 0.0)


def _projected(x: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the gradient without entries that point out of the box: zero at a solution."""
    held = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
    return torch.where(held, 0.0, gradient)


def _step(
    function: Callable[[Tensor, bool], Expansion],
    box: Box,
    x: Tensor,
    value: float,
    gradient: Tensor,
    hessian: Tensor,
    lower: Tensor,
    upper: Tensor,
) -> Tensor | None:
    """Return the next point, or None if rounding prevents progress."""
    # Also hold coordinates near a bound, not only those on it. Otherwise the projected path could bend at once, and the
    # line search would shrink the step of all the others to nothing. The threshold shrinks towards the solution.
    reach = float((x - torch.clamp(x - gradient, lower, upper)).norm())
    near = min(_NEAR, reach)
    held = ((x <= lower + near) & (gradient > 0)) | ((x >= upper - near) & (gradient < 0))
    direction = -gradient / hessian.diagonal().clamp(min=1e-6)
    if bool((~held).any()):
        free = (~held).nonzero()[:, 0]
        direction[free] = -_solve(hessian[free][:, free], gradient[free])
    # Armijo along the projected path: held coordinates count with their actual move, free ones with the full slope.
    slope, length = -float((gradient * direction)[~held].sum()), 1.0
    for _ in range(40):
        moved = torch.clamp(x + length * direction, lower, upper)
        promised = length * slope + float((gradient * (x - moved))[held].sum())
        reached = function(moved, False).value + box.l1 * float(moved.abs().sum())
        if reached <= value - _ARMIJO * promised and not torch.equal(moved, x):
            return moved
        length /= 2
    return None


def _solve(hessian: Float[Tensor, "k k"], gradient: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return a Newton step, damped until the matrix is positive definite; flat directions get no step."""
    damping = 1e-10 * float(hessian.diagonal().mean()) + 1e-12
    identity = torch.eye(len(gradient), dtype=hessian.dtype)
    while True:
        factor, failed = torch.linalg.cholesky_ex(hessian + damping * identity)
        if not int(failed):
            return torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        damping *= 100


def _gap(x: Tensor, gradient: Tensor, box: Box) -> float:
    """Return how far a convex function can fall below its value at x: its tangent plane bounds it within the box."""
    # The plane and the penalty are separable and piecewise linear, so each coordinate is least at an end or at 0.
    ends = [gradient * end + box.l1 * abs(end) for end in (box.lower, box.upper, 0.0)]
    least = torch.stack(ends).amin(0)
    return max(0.0, float((gradient * x + box.l1 * x.abs() - least).sum()))
