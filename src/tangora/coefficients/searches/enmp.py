"""Which layers of which experts are left out, by the loss of complete fused models: ENMP (arXiv:2604.17753)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tangora.coefficients.contract import Needs, SearchSettings
from tangora.coefficients.enmp import enmp
from tangora.coefficients.settings import RowSettings

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["SEARCH", "Enmp", "EnmpSettings"]


class EnmpSettings(RowSettings):
    """Settings of `enmp`."""

    name: Literal["enmp"] = "enmp"
    per: Literal["task", "site"] = Field(default="site", description="leave out layers of experts, or whole experts")
    weight: float = Field(default=0.5, gt=0, description="of what stays")
    dropped: float = Field(default=0.2, gt=0, lt=1, description="share of the layers of all experts that is left out")
    population: int = Field(default=8, ge=4, description="fusions that are scored in a generation")
    generations: int = Field(default=30, ge=1, description="of the evolution")
    sigma: float = Field(default=0.5, gt=0, description="first step size of CMA-ES")

    @property
    def label(self) -> str:
        """The name, since layers are what it is about."""
        return self.name + ("" if self.per_site else "-task")

    def passes(self, rows: Sequence[int]) -> float:
        """Return a pass of every row for each fusion."""
        return float((1 + self.population * self.generations) * sum(rows))


class Enmp:
    """See `tangora.coefficients.enmp.enmp`."""

    name = "enmp"
    settings: type[SearchSettings] = EnmpSettings
    needs: Needs = "loss"
    labelled = True
    classes = False

    def __call__(self, problem: Problem, settings: EnmpSettings) -> Found:
        """Score fused models generation by generation."""
        return enmp(
            problem.loss,
            len(problem.tasks),
            problem.sites,
            weight=settings.weight,
            dropped=settings.dropped,
            population=settings.population,
            generations=settings.generations,
            sigma=settings.sigma,
            rows=problem.counts,
            seed=problem.seed,
            on_step=problem.on_step,
        )


SEARCH = Enmp()
