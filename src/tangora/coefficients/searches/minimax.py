"""The best worst task on labelled rows: solved if the problem is convex, else by Adam on forward passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tangora.coefficients.contract import Needs, SearchSettings
from tangora.coefficients.searches._labelled import by_labels
from tangora.coefficients.settings import AdamSettings

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["SEARCH", "Minimax", "MinimaxSettings"]


class MinimaxSettings(AdamSettings):
    """Settings of `minimax`; steps, rate and rows per step matter only if there are no columns to solve on."""

    name: Literal["minimax"] = "minimax"


class Minimax:
    """See `tangora.coefficients.solve.minimax`, and `tangora.coefficients.descend.learned` for other logits."""

    name = "minimax"
    settings: type[SearchSettings] = MinimaxSettings
    needs: Needs = "logits"
    labelled = True
    classes = False

    def __call__(self, problem: Problem, settings: MinimaxSettings) -> Found:
        """Solve on columns, or descend."""
        return by_labels(problem, settings, worst_task=True)


SEARCH = Minimax()
