"""Coefficients that follow the experts on rows without labels, sharpness-aware: SAMerging (arXiv:2512.21288)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.coefficients.contract import Needs, SearchSettings
from tangora.coefficients.settings import DescentSettings

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["SEARCH", "Samerging", "SamergingSettings"]


class SamergingSettings(DescentSettings):
    """Settings of `samerging`."""

    name: Literal["samerging"] = "samerging"
    nonnegative: bool = Field(default=False, description="no coefficient below 0")
    bound: float = Field(default=3.0, gt=0, description="largest magnitude")
    steps: int = Field(default=100, ge=1, description="steps of Adam")
    learning_rate: float = Field(default=0.02, gt=0, description="rate of Adam")
    sharpness: float = Field(default=0.05, ge=0, description="how far the worst point nearby may lie")

    def passes(self, rows: Sequence[int]) -> float:
        """Return the passes of all steps: twice forward and backward, and once forward through the experts."""
        return 2.5 * self.passes_of(self.steps, rows)


class Samerging:
    """See `tangora.coefficients.samerging.samerging`."""

    name = "samerging"
    settings: type[SearchSettings] = SamergingSettings
    needs: Needs = "logits"
    labelled = False
    classes = False  # of texts: over the tokens that the experts generate

    def __call__(self, problem: Problem, settings: SamergingSettings) -> Found:
        """Descend on columns if there are any, else by forward passes."""
        from tangora.coefficients.linear import LinearLogits  # deferred: torch
        from tangora.coefficients.samerging import samerging  # deferred: torch

        return samerging(
            LinearLogits(problem.columns()) if problem.linear else problem.logits(),
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            sharpness=settings.sharpness,
            rows=settings.rows_per_step,
            nonnegative=settings.nonnegative,
            bound=settings.bound,
            l2=settings.pull,
            l1=settings.l1,
            seed=problem.seed,
            on_step=problem.on_step,
        )


SEARCH = Samerging()
