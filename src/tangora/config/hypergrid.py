"""The keys of the mode ``hypergrid``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tangora.config.settings import Frozen, JointSettings

__all__ = ["GridsRecord", "HyperGridSettings"]


class HyperGridSettings(JointSettings):
    """Which weights have grids of gates, and what the gates are computed from.

    >>> HyperGridSettings(variant="L").grid
    (16, 1)
    """

    variant: Literal["L", "L2", "LG", "GL"] = Field(
        default="L2", description="the gates' rows and columns: L of the task, G of all tasks; L alone has no columns"
    )
    gate: Literal["sigmoid2", "tanh", "exp"] = Field(
        default="sigmoid2", description="of z = u vᵀ: 2 sigmoid(z), 1 + tanh(z) or exp(z); all are 1 at 0"
    )
    rows: int = Field(default=16, ge=1, description="blocks that the inputs of a weight are divided into")
    columns: int = Field(default=16, ge=1, description="blocks that its outputs are divided into; one in variant L")
    condition: Literal["task", "first-token"] = Field(
        default="task", description="a trained embedding of the task; or the base's embedding of its rows' first token"
    )
    width: int | None = Field(default=None, ge=1, description="of a task's embedding; default: the base's hidden size")
    base: Literal["frozen", "train"] = Field(default="frozen", description="train the base's weights too, as the paper")
    base_rate: float = Field(default=5e-5, gt=0, description="learning rate of the base's weights")
    target_modules: list[str] | None = Field(
        default=None, min_length=1, description="linear layers with gates; default: all of the feed-forward blocks"
    )

    @model_validator(mode="after")
    def _width_of_an_embedding(self) -> HyperGridSettings:
        if self.width is not None and self.condition == "first-token":
            raise ValueError("width is that of a task's embedding: the base's tokens have their own")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a matrix's grid."""
        return self.rows, 1 if self.variant == "L" else self.columns


class GridsRecord(Frozen):
    """What the network of an adapter is made of: ``metadata.modules``.

    Attributes:
        sites: the gated layers.
        rows, columns: of each grid.
        changes: parameters of the base that were trained too.
    """

    sites: list[str]
    rows: int
    columns: int
    changes: list[str] = Field(default_factory=list)
