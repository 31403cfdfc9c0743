"""One coefficient at a time: move it as long as the loss falls, then the next, with smaller and smaller steps."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import Field

from tangora.coefficients.contract import SearchSettings
from tangora.coefficients.found import Found
from tangora.coefficients.problem import Problem


class CoordinatesSettings(SearchSettings):
    """What a recipe may say beside ``name: coordinates``."""

    name: Literal["coordinates"] = "coordinates"
    rounds: int = Field(default=4, ge=1, description="times that the step is halved")
    step: float = Field(default=0.5, gt=0, description="of the first round")
    labels: int | None = Field(default=None, ge=1, description="rows a task; default all")

    @property
    def row_limit(self) -> int | None:
        """How many rows of each task the problem has."""
        return self.labels


class Coordinates:
    """Pattern search along the axes, from zero: what it needs is the loss of fused models, nothing else."""

    name = "coordinates"
    settings: type[SearchSettings] = CoordinatesSettings
    needs: Literal["loss", "logits", "columns"] = "loss"
    labelled = True
    classes = False

    def __call__(self, problem: Problem, settings: CoordinatesSettings) -> Found:
        """Search with as many evaluations as it takes."""
        began, weights = time.perf_counter(), [0.0] * len(problem.tasks)
        best, count, step = problem.loss(weights), 1, settings.step
        for done in range(settings.rounds):
            for axis in range(len(weights)):
                for direction in (step, -step):
                    while True:
                        moved = [round(w + direction * (i == axis), 6) for i, w in enumerate(weights)]
                        loss, count = problem.loss(moved), count + 1
                        if not loss < best:
                            break
                        best, weights = loss, moved
            step /= 2
            problem.on_step(done + 1, settings.rounds, f"loss {best:.4g}")
        about = {"search": self.name, "rounds": settings.rounds, "step": settings.step}
        return Found(weights, best, best, None, None, count, time.perf_counter() - began, problem.counts, about)


SEARCH = Coordinates()
