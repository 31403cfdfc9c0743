"""The keys of the mode ``ep-alm``. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tangora.config.settings import WeightSettings

__all__ = ["EpAlmSettings"]


class EpAlmSettings(WeightSettings):
    """The keys of a mode that puts visual tokens into a decoder's layers."""

    levels: int | None = Field(
        default=None,
        ge=1,
        description="last blocks of the tower that are read; default: 6, or fewer if there are fewer",
    )
    start: int | None = Field(default=None, ge=0, description="first layer of the decoder that gets a visual token")
    end: int | None = Field(default=None, ge=1, description="the layer after the last one; default: 19/32 to the last")
    connector: Literal["level", "shared"] = Field(default="level", description="a connector for each level, or one")
    prompt: int = Field(default=10, ge=0, description="vectors of the soft prompt")
    prompt_mlp: bool = Field(default=True, description="train the soft prompt through an MLP")
    mask: Literal["causal", "released"] = Field(
        default="causal", description="released: the visual token sees later tokens, as in the released code (a leak)"
    )

    @model_validator(mode="after")
    def _range(self) -> EpAlmSettings:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"end: the range of layers is empty, from {self.start} to {self.end}")
        return self
