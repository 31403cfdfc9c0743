"""Least entropy of rows without labels: AdaMerging (arXiv:2310.02575)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.coefficients.contract import Needs, SearchSettings
from tangora.coefficients.settings import DescentSettings

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["SEARCH", "Adamerging", "AdamergingSettings"]


class AdamergingSettings(DescentSettings):
    """Settings of `adamerging`."""

    name: Literal["adamerging"] = "adamerging"
    nonnegative: bool = Field(default=True, description="no coefficient below 0")
    bound: float = Field(default=1.0, gt=0, description="largest magnitude")
    steps: int | None = Field(default=None, ge=1, description="steps of Adam; default 500, on columns 50")
    learning_rate: float | None = Field(default=None, gt=0, description="rate of Adam; default 0.001, on columns 0.01")

    def passes(self, rows: Sequence[int]) -> float:
        """Return the passes of all steps, forward and backward."""
        return self.passes_of(self.steps or 500, rows)


class Adamerging:
    """See `tangora.coefficients.descend.adamerging`."""

    name = "adamerging"
    settings: type[SearchSettings] = AdamergingSettings
    needs: Needs = "logits"
    labelled = False
    classes = False  # of texts: over the tokens that the experts generate

    def __call__(self, problem: Problem, settings: AdamergingSettings) -> Found:
        """Descend on columns if there are any, since a pass costs next to nothing, else by forward passes."""
        from tangora.coefficients.descend import adamerging  # deferred: torch
        from tangora.coefficients.linear import LinearLogits  # deferred: torch

        return adamerging(
            LinearLogits(problem.columns()) if problem.linear else problem.logits(),
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            rows=settings.rows_per_step,
            nonnegative=settings.nonnegative,
            bound=settings.bound,
            l2=settings.pull,
            l1=settings.l1,
            seed=problem.seed,
            on_step=problem.on_step,
        )


SEARCH = Adamerging()
