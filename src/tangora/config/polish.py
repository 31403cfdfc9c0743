"""The settings of a polish: how a fused adapter is trained towards its experts' answers. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tangora.config.settings import Frozen

__all__ = ["FORM_ROWS", "PolishSettings"]


_REACHED = 1000  # enough that 200 steps of 5 rows repeat none
FORM_ROWS = 64
"""Most rows per task that the closed form sees: their tokens are many more than a layer has inputs."""
_FORM = 8  # passes of a row through the model: two to the first block, two of each block and its layers, one beyond


class PolishSettings(Frozen):
    """The student, the rows without labels, and the training.

    >>> PolishSettings(rank=8).rows
    256
    """

    rank: int | None = Field(
        default=16, ge=1, description="largest rank of a site; None: that of the start, or the full one of entries"
    )
    rows: int = Field(default=256, ge=2, description="most rows per task; their labels are read only with labels")
    labels: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the rows' labels, of classes, in the loss; the experts' answers have the rest, and all "
        "of rows that are made, which have no label",
    )
    recombined: int | None = Field(
        default=None,
        ge=0,
        description="rows per task to reach by putting parts of the drawn ones together; default: 1000 for classes",
    )
    split: Literal["train", "validation"] = Field(default="train", description="the split that the rows are drawn from")
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="share of these rows on which the best step is chosen; 0: the last step"
    )
    objective: Literal["answers", "layers"] = Field(
        default="answers",
        description="what is trained towards: the experts' answers, or block by block the outputs of their blocks",
    )
    student: Literal["lora", "l-lora", "tangent", "entries"] = Field(
        default="lora",
        description="lora trains A and B; l-lora only B; tangent B of the expansion of the network; "
        "entries a coefficient for every entry of every expert's change",
    )
    initial: Literal["fused", "random", "layers"] = Field(
        default="fused",
        description="factors to start from; random: B is zero; layers: in closed form, layer by layer",
    )
    ridge: float = Field(
        default=0.1,
        ge=0,
        description="of the closed form, towards the fused update; a fraction of the mean second moment of the inputs",
    )
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
    class_names: bool = Field(
        default=False, description="texts that are made contain parts of the names of the task's classes, too"
    )
    steps: int = Field(
        default=100, ge=0, description="optimizer steps, with layers of every block; each sees rows of every task"
    )
    batch_size: int = Field(default=5, ge=1, description="rows per task and step")
    learning_rate: float = Field(default=1e-3, gt=0, description="of AdamW")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="fraction of the steps")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    sharpness: float = Field(
        default=0.0,
        ge=0,
        description="gradients are those of the worst point at this distance from the weights; twice the time",
    )
    averaged: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="the mean of the weights over this last share of the steps competes with the best step; without "
        "held-out rows it is the result",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="evaluations without progress before stopping; None: never",
    )
    evaluate_every: int = Field(default=25, ge=1, description="steps between divergences on the held-out rows")

    @property
    def by_layers(self) -> bool:
        """Whether layers of the experts are followed, and not their answers alone."""
        return "layers" in (self.initial, self.objective)

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
        times = 2 + self.steps // self.evaluate_every if self.held_out and self.objective == "answers" else 2
        cost = (6 if self.student == "tangent" else 3) * (2 if self.sharpness else 1)
        trained = [self.trained(count, classes=classes) for count in used]
        layered = _FORM * sum(min(count, FORM_ROWS) for count in trained) if self.initial == "layers" else 0
        if self.objective == "layers":  # as far as the first block, then through each block, and its distances
            layered += 6 * sum(min(count, self.steps * self.batch_size) for count in trained)
        return float(answered + layered + cost * self.steps * self.batch_size * len(used) + times * judged)

    def trained(self, rows: int, *, classes: bool) -> int:
        """Return how many rows are trained on, with those that are made: all but the held-out ones.

        Args:
            rows: that are drawn.
            classes: whether answers are classes.
        """
        return self.answered(rows, classes=classes) - self.held(rows)

    def held(self, rows: int) -> int:
        """Return how many of a task's rows are held out."""
        return min(rows - 1, max(1, round(self.held_out * rows))) if self.held_out else 0

    @model_validator(mode="after")
    def _consistent(self) -> PolishSettings:
        if self.student == "tangent" and self.initial == "random":
            raise ValueError("a tangent student starts from the fusion: leave initial out")
        if self.steps == 0 and (self.objective, self.initial) != ("answers", "layers"):
            raise ValueError("nothing is trained in 0 steps: set steps, or initial: layers, without objective")
        for name in ("labels", "sharpness", "averaged") if self.steps == 0 else ():
            if getattr(self, name):
                raise ValueError(f"{name} is about steps, and the closed form has none: set steps, or leave {name} out")
        return self

    @model_validator(mode="after")
    def _by_layers(self) -> PolishSettings:
        if self.student == "entries" and self.objective != "layers":
            raise ValueError("coefficients of entries are trained block by block: set objective: layers")
        if self.student == "entries" and self.initial != "fused":
            raise ValueError("coefficients of entries start from the fusion: leave initial out")
        if self.objective == "answers":
            return self
        if self.student in ("l-lora", "tangent"):
            raise ValueError(f"student {self.student} follows answers: leave objective out, or student")
        names = ("labels", "follow", "temperature", "weigh", "sharpness", "averaged", "patience")
        given = {name: getattr(self, name) for name in names}
        plain = PolishSettings.model_fields
        if odd := [name for name, value in given.items() if value != plain[name].default]:
            raise ValueError(f"{odd[0]} is about answers, and objective: layers follows none: leave {odd[0]} out")
        return self
