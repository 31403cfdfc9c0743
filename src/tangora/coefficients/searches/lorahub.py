"""One weight per task without gradients, by the loss of complete fused models: LoraHub (arXiv:2307.13269)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.coefficients.contract import Needs, SearchSettings
from tangora.coefficients.lorahub import lorahub

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["SEARCH", "Lorahub", "LorahubSettings"]


class LorahubSettings(SearchSettings):
    """Settings of `lorahub`."""

    name: Literal["lorahub"] = "lorahub"
    budget: int = Field(default=40, ge=1, description="evaluations at most")
    bound: float = Field(default=1.5, gt=0, description="largest magnitude")
    penalty: float = Field(default=0.05, ge=0, description="times the mean magnitude, added to the loss")

    def passes(self, rows: Sequence[int]) -> float:
        """Return ``budget`` passes of every row."""
        return float(self.budget * sum(rows))


class Lorahub:
    """See `tangora.coefficients.lorahub.lorahub`."""

    name = "lorahub"
    settings: type[SearchSettings] = LorahubSettings
    needs: Needs = "loss"
    labelled = True
    classes = False

    def __call__(self, problem: Problem, settings: LorahubSettings) -> Found:
        """Score fused models until the budget is spent or the search has converged."""
        return lorahub(
            problem.loss,
            len(problem.tasks),
            budget=settings.budget,
            bound=settings.bound,
            penalty=settings.penalty,
            rows=problem.counts,
            on_step=problem.on_step,
        )


SEARCH = Lorahub()
