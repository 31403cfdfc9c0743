"""Least cross-entropy on labelled rows: solved if the problem is convex, else by Adam on forward passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tangora.coefficients.contract import Needs, SearchSettings
from tangora.coefficients.searches._labelled import by_labels
from tangora.coefficients.settings import AdamSettings

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["SEARCH", "Learned", "LearnedSettings"]


class LearnedSettings(AdamSettings):
    """Settings of `learned`; steps, rate and rows per step matter only if there are no columns to solve on."""

    name: Literal["learned"] = "learned"


class Learned:
    """See `tangora.coefficients.descend.learned`, and `tangora.coefficients.solve.convex` for linear logits."""

    name = "learned"
    settings: type[SearchSettings] = LearnedSettings
    needs: Needs = "logits"
    labelled = True
    classes = False

    def __call__(self, problem: Problem, settings: LearnedSettings) -> Found:
        """Solve on columns, or descend."""
        return by_labels(problem, settings, worst_task=False)


SEARCH = Learned()
