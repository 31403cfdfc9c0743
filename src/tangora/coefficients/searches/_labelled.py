"""Searches on labelled rows: solved if logits are linear in the coefficients, else by Adam on forward passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem
    from tangora.coefficients.settings import AdamSettings

__all__ = ["by_labels"]


def by_labels(problem: Problem, settings: AdamSettings, *, worst_task: bool) -> Found:
    """Minimize the mean loss of the tasks, or the loss of the worst task."""
    if problem.linear:
        from tangora.coefficients.solve import convex, minimax  # deferred: torch

        return (minimax if worst_task else convex)(
            problem.columns(),
            l2=settings.pull,
            l1=settings.l1,
            nonnegative=settings.nonnegative,
            bound=settings.bound,
        )
    from tangora.coefficients.descend import learned  # deferred: torch

    return learned(
        problem.logits(),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        rows=settings.rows_per_step,
        nonnegative=settings.nonnegative,
        worst_task=worst_task,
        seed=problem.seed,
        on_step=problem.on_step,
        l2=settings.pull,
        l1=settings.l1,
        bound=settings.bound,
    )
