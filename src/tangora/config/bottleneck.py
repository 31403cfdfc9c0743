"""The keys of the modes of bottleneck adapters: ``bottleneck``, ``hyperformer``, ``polyhistor``, ``polyhistor-lite``.

No torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from tangora.config.settings import Frozen, JointSettings, WeightSettings

__all__ = [
    "BottleneckKeys",
    "BottleneckSettings",
    "HyperformerSettings",
    "PolyhistorLiteSettings",
    "PolyhistorSettings",
]


class BottleneckKeys(Frozen):
    """The form of bottleneck adapters, and their places."""

    reduction: int = Field(default=4, ge=1, description="ρ: a layer of width d has a bottleneck of d / ρ")
    places: list[Literal["attention", "ffn"]] = Field(
        default=["attention", "ffn"], min_length=1, description="sub-layers with an adapter"
    )
    form: Literal["serial", "parallel"] = Field(
        default="serial",
        description="an adapter reads the output of its sub-layer, or its input; it is added either way",
    )
    activation: Literal["swish", "gelu", "gelu_new", "relu"] = Field(
        default="swish", description="between the two projections"
    )
    norm: Literal["none", "before", "after"] = Field(
        default="none", description="layer normalization of what an adapter reads, or of what it adds"
    )
    output_scale: float = Field(default=1.0, gt=0, description="of what an adapter adds")

    @field_validator("places")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError(f"each place once; got {', '.join(value)}")
        return value


class BottleneckSettings(BottleneckKeys, WeightSettings):
    """One adapter for each task, trained by itself."""


class HyperformerSettings(BottleneckKeys, JointSettings):
    """A hypernetwork that writes the adapters of all tasks.

    >>> HyperformerSettings(reduction=8).share
    'block'
    """

    embedding: int = Field(default=64, ge=1, description="numbers of a task, and of a layer")
    hidden: int = Field(default=128, ge=1, description="width of the network that joins them to a code")
    projected: int = Field(default=64, ge=1, description="numbers of the code")
    share: Literal["block", "stage"] = Field(
        default="block", description="which layers have the same heads: every layer its own, or all of one width"
    )


class PolyhistorSettings(HyperformerSettings):
    """A hypernetwork that writes adapters of low rank."""

    rank: int = Field(default=8, ge=1, description="r of every matrix that is written")


class PolyhistorLiteSettings(PolyhistorSettings):
    """A hypernetwork that writes templates of the narrowest layer's size, from which wider adapters are composed."""

    share: Literal["all"] = Field(default="all", description="one head writes the templates of all layers")  # type: ignore[assignment]
    kernels: Literal["scaled", "released"] = Field(
        default="scaled", description="first values of scaling kernels: of standard deviation 1/√s, or 1 as released"
    )
    order: Literal["kernel-first", "template-first"] = Field(
        default="kernel-first", description="K ⊗ T, whose blocks are templates; or T ⊗ K"
    )
