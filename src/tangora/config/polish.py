"""The settings of a polish: how a fused adapter is trained towards its experts' answers. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tangora.config.settings import Frozen

__all__ = ["PolishSettings"]


_REACHED = 1000  # enough that 200 steps of 5 rows repeat none


class PolishSettings(Frozen):
    """The student, the rows without labels, and the training.

    >>> PolishSettings(rank=8).rows
    256
    """

    rank: int | None = Field(default=16, ge=1, description="largest rank of a site; None: that of the start")
    rows: int = Field(default=256, ge=2, description="most rows per task; their labels are not read")
    recombined: int | None = Field(
        default=None,
        ge=0,
        description="rows per task to reach by putting parts of the drawn ones together; default: 1000 for classes",
    )
    split: Literal["train", "validation"] = Field(default="train", description="the split that the rows are drawn from")
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="share of these rows on which the best step is chosen; 0: the last step"
    )
    student: Literal["lora", "l-lora", "tangent"] = Field(
        default="lora", description="lora trains A and B; l-lora only B; tangent B of the expansion of the network"
    )
    initial: Literal["fused", "random"] = Field(default="fused", description="factors to start from; random: B is zero")
    follow: Literal["probabilities", "features", "both"] = Field(
        default="probabilities",
        description="what of the experts' answers; features: where logits are linear in unit features",
    )
    temperature: float = Field(default=1.0, gt=0, description="of the probabilities")
    feature_weight: float = Field(default=1.0, gt=0, description="of the features' loss beside the divergence")
    top: int = Field(default=64, ge=1, description="most likely tokens of a vocabulary that are kept")
    weigh: Literal["equal", "lost"] = Field(
        default="equal", description="weights of the tasks; lost: by their divergence at the start"
    )
    steps: int = Field(default=100, ge=1, description="optimizer steps; each sees rows of every task")
    batch_size: int = Field(default=5, ge=1, description="rows per task and step")
    learning_rate: float = Field(default=1e-3, gt=0, description="of AdamW")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="fraction of the steps")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="evaluations without progress before stopping; None: never",
    )
    evaluate_every: int = Field(default=25, ge=1, description="steps between divergences on the held-out rows")

    def answered(self, rows: int, *, classes: bool) -> int:
        """Return how many rows an expert answers, with those that are made.

        Args:
            rows: that are drawn.
            classes: whether answers are classes. Texts would have to be generated for every row that is made.
        """
        reached = self.recombined if self.recombined is not None else _REACHED if classes else 0
        return max(rows, reached)

    def passes(self, rows: Sequence[int], *, classes: bool = True) -> float:
        """Return about how many rows pass forward through the model; a backward pass counts as two.

        Args:
            rows: how many rows each task has.
            classes: whether answers are classes.
        """
        used = [min(self.rows, count) for count in rows]
        answered = sum(self.answered(count, classes=classes) for count in used)
        judged = sum(self.held(count) for count in used) or sum(used)
        times = 2 + self.steps // self.evaluate_every if self.held_out else 2
        cost = 6 if self.student == "tangent" else 3
        return float(answered + cost * self.steps * self.batch_size * len(used) + times * judged)

    def held(self, rows: int) -> int:
        """Return how many of a task's rows are held out."""
        return min(rows - 1, max(1, round(self.held_out * rows))) if self.held_out else 0

    @model_validator(mode="after")
    def _consistent(self) -> PolishSettings:
        if self.student == "tangent" and self.initial == "random":
            raise ValueError("a tangent student starts from the fusion: leave initial out")
        return self
