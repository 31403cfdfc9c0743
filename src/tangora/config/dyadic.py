"""The keys of the mode ``dyadic`` in a recipe. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tangora.config.settings import JointAdapterSettings

__all__ = ["DyadicSettings", "RouterInput"]

RouterInput = Literal["input", "shared", "core"]
"""What the routing vectors of a site are computed from, and how many there are; see `DyadicSettings`."""


class DyadicSettings(JointAdapterSettings):
    """Several up-vectors for each rank of a LoRA, and what chooses among them.

    >>> DyadicSettings(lora={"r": 4}, ups=6).decisions
    4
    """

    ups: int = Field(default=4, ge=1, description="up-vectors of each rank (m); 1: LoRA")
    block: int = Field(default=1, ge=1, description="ranks that are decided together (p); r: MoLORA-SD")
    router: RouterInput = Field(
        default="input",
        description="reads the input; one decision for all ranks; or reads only the r products with A",
    )

    @property
    def decisions(self) -> int:
        """The routing vectors of a site: r / p, or one."""
        return 1 if self.router == "shared" else self.lora.r // self.block

    @model_validator(mode="after")
    def _fits(self) -> DyadicSettings:
        lora = self.lora
        if lora.r % self.block:
            raise ValueError(f"block must divide lora.r: {lora.r} ranks are no blocks of {self.block}")
        if self.router == "shared" and self.block > 1:
            raise ValueError("router: shared decides for all ranks together: leave block out")
        if lora.rank_pattern or lora.alpha_pattern:
            raise ValueError("every site has one rank and one scaling: leave rank_pattern and alpha_pattern out")
        if lora.init is not True:
            raise ValueError("A and the router begin at N(0, 0.01²) and B at 0: leave lora.init out")
        if lora.a_init != "shared":
            raise ValueError("one adapter of all tasks has one A₀: set a_init: shared")
        return self
