"""Settings that several searches share. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from tangora.config.fusion import SearchSettings

__all__ = ["AdamSettings", "DescentSettings", "GradientSettings", "RowSettings"]


class RowSettings(SearchSettings):
    """Settings of a search that can use a part of the rows, and can give each site its own coefficient."""

    per: Literal["task", "site"] = Field(default="task", description="a coefficient per task, or task and site")
    labels: int | None = Field(
        default=None, ge=1, description="rows a task, picked by class; default all; a search may ignore their labels"
    )

    @property
    def label(self) -> str:
        """The name, with ``-site`` for coefficients per site."""
        return self.name + ("-site" if self.per_site else "")

    @property
    def row_limit(self) -> int | None:
        """``labels``."""
        return self.labels

    @property
    def per_site(self) -> bool:
        """Whether ``per`` is ``site``."""
        return self.per == "site"


class GradientSettings(RowSettings):
    """Settings of a search on logits: penalties and bounds of the coefficients."""

    l1: float = Field(default=0.0, ge=0, description="times the sum of magnitudes, added to the loss")
    nonnegative: bool = Field(default=False, description="no coefficient below 0")
    bound: float = Field(default=3.0, gt=0, description="largest magnitude")

    @property
    def default_l2(self) -> float:
        """The pull towards the mean if none is given: the many coefficients per site need one."""
        return 0.01 if self.per_site else 0.0


class DescentSettings(GradientSettings):
    """Settings of a search by gradient steps."""

    l2: float | None = Field(
        default=None,
        ge=0,
        description="pull of a task's coefficients towards their mean; default 0 per task, 0.01 per site",
    )
    rows_per_step: int = Field(default=16, ge=1, description="rows of each task in a step of Adam")

    @field_validator("l2", mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        if value == "auto":
            raise ValueError("l2: auto is only for search convex, which is fast enough; give a number")
        return value

    def passes_of(self, steps: int, rows: Sequence[int]) -> float:
        """Return the passes of some steps on a part of the rows, and of the loss on all of them at the end."""
        a_step = sum(min(count, self.rows_per_step) for count in rows)
        return 3.0 * (steps * a_step + sum(rows))

    @property
    def pull(self) -> float:
        """``l2``, with its default."""
        return self.default_l2 if self.l2 is None else self.l2


class AdamSettings(DescentSettings):
    """Settings of a search that solves convex problems exactly and takes some large steps of Adam on others."""

    steps: int = Field(default=60, ge=1, description="steps of Adam")
    learning_rate: float = Field(default=0.05, gt=0, description="rate of Adam")

    def passes(self, rows: Sequence[int]) -> float:
        """Return the passes of all steps, forward and backward."""
        return self.passes_of(self.steps, rows)
