"""Exact least cross-entropy on labelled rows, for modes with logits that are linear in the coefficients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.coefficients.contract import Needs, SearchSettings
from tangora.coefficients.settings import GradientSettings

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["SEARCH", "Convex", "ConvexSettings"]


class ConvexSettings(GradientSettings):
    """Settings of `convex`."""

    name: Literal["convex"] = "convex"
    l2: float | Literal["auto"] | None = Field(
        default=None,
        description="pull of a task's coefficients towards their mean; default 0 per task, 0.01 per site; "
        "auto: by cross-validation on the same rows",
    )


class Convex:
    """See `tangora.coefficients.solve.convex`."""

    name = "convex"
    settings: type[SearchSettings] = ConvexSettings
    needs: Needs = "columns"
    labelled = True
    classes = False

    def __call__(self, problem: Problem, settings: ConvexSettings) -> Found:
        """Solve on the columns."""
        from tangora.coefficients.solve import convex  # deferred: torch

        return convex(
            problem.columns(),
            l2=settings.default_l2 if settings.l2 is None else settings.l2,
            l1=settings.l1,
            nonnegative=settings.nonnegative,
            bound=settings.bound,
        )


SEARCH = Convex()
