"""The keys of the mode ``ca-mtl`` in a recipe. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tangora.config.settings import JointSettings, SamplingSettings

__all__ = ["CaMtlSettings"]


class CaMtlSettings(JointSettings):
    """What of a BERT-like encoder depends on the task, and what is trained beside that.

    >>> CaMtlSettings(bottleneck=False).variant
    'base'
    """

    variant: Literal["base", "large"] = Field(
        default="base", description="the bottleneck: after the top layer; or after every layer, with a skip connection"
    )
    alignment: bool = Field(default=True, description="scale and shift embeddings by task")
    attention: bool = Field(default=True, description="add a block-diagonal bias to the attention of every layer")
    norms: bool = Field(default=True, description="the weights of layer norms in the upper half depend on the task")
    bottleneck: bool = Field(default=True, description="a linear bottleneck whose input is scaled and shifted by task")
    length: int | None = Field(
        default=None, ge=1, description="L of the attention bias, in tokens; by default as many as the base reads"
    )
    top: Literal["kept", "new"] = Field(
        default="kept", description="the top layer: as in the base, or trained from new values, as the paper does"
    )
    unfreeze_from: int | None = Field(
        default=None, ge=0, description="train the weights of this layer and of those above it; the paper: 5 of 12"
    )
    loss: Literal["tasks", "rows"] = Field(
        default="tasks", description="of a batch: the mean over its tasks of their mean losses, or over its rows"
    )
    sampling: SamplingSettings = Field(
        default=SamplingSettings(by="uncertainty"), description="how rows are drawn from the tasks"
    )

    @model_validator(mode="after")
    def _trains_something(self) -> CaMtlSettings:
        if not (self.alignment or self.attention or self.norms or self.bottleneck):
            raise ValueError("of alignment, attention, norms and bottleneck, at least one must be true")
        if self.variant == "large" and self.top == "new":
            raise ValueError("variant: large keeps its top layer: leave top out")
        if self.variant == "large" and not self.bottleneck:
            raise ValueError("without bottleneck, the variants do not differ: leave variant out")
        return self
