"""The settings of a router that learns from rows: what it follows, on which rows, and how it is trained. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tangora.config.routing import RouteSettings

__all__ = ["LearnedSettings"]


class LearnedSettings(RouteSettings):
    """The objective, the rows and the training of a router; each router that learns derives its own class from this."""

    objective: Literal["entropy", "follow", "labels"] = Field(
        default="entropy",
        description="least entropy of rows without labels; least divergence from each task's expert; least loss",
    )
    split: Literal["train", "validation", "oracle"] = Field(
        default="train",
        description="the split that the rows are drawn from; oracle: the test rows, whose scores then say little",
    )
    rows: int = Field(default=256, ge=1, description="most rows per task")
    held_out: float = Field(
        default=0.0, ge=0, lt=1, description="share of these rows on which the best step is chosen; 0: the last step"
    )
    steps: int = Field(default=1000, ge=0, description="optimizer steps, each on rows of every task; 0: as drawn")
    batch_size: int = Field(default=16, ge=1, description="rows per task and step")
    learning_rate: float = Field(default=1e-4, gt=0, description="of Adam")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="of the learning rate")
    temperature: float = Field(default=1.0, gt=0, description="of the probabilities with objective: follow")
    top: int = Field(default=64, ge=1, description="most likely tokens that are kept of an expert's answers in texts")
    evaluate_every: int = Field(default=100, ge=1, description="steps between values of the objective on held-out rows")
    checkpoint_every: int | None = Field(default=50, ge=1, description="steps between checkpoints to resume from")

    @model_validator(mode="after")
    def _enough(self) -> LearnedSettings:
        if self.held_out and self.rows < 2:
            raise ValueError("held_out needs at least 2 rows per task")
        return self

    @property
    def rows_of(self) -> str:
        """The split of the tasks that rows are drawn from."""
        return "test" if self.split == "oracle" else self.split

    def held(self, rows: int) -> int:
        """Return how many of a task's rows are held out."""
        return min(rows - 1, max(1, round(self.held_out * rows))) if self.held_out and rows > 1 else 0

    def passes(self, rows: Sequence[int], *, classes: bool = True) -> float:
        """Return about how many rows pass forward through the model; see `RouteSettings.passes`."""
        used = [min(self.rows, count) for count in rows]
        answered = sum(used) if self.objective == "follow" or not classes else 0
        judged = sum(map(self.held, used)) or sum(used)
        times = 2 + (self.steps // self.evaluate_every if self.held_out else 0)
        return float(answered + 3 * self.steps * self.batch_size * len(used) + times * judged)
