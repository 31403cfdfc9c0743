"""The recipe's ``machine`` key: device, dtype and threads of a run. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tangora.config.settings import Frozen

__all__ = ["MachineConfig"]


class MachineConfig(Frozen):
    """The device, the dtype and the threads of a run. They change its speed, and its numbers only by rounding."""

    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps|xpu(:\d+)?)$",
        description="auto: an accelerator if there is one, else cpu; or a torch device, such as cuda:1",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="of forward passes; adapters and losses stay in float32, weights in base.weights_dtype",
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="of torch on the CPU; auto: as many as are fastest when measured at the start"
    )
