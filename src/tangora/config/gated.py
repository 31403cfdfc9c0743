"""The keys of modes that train gates: a gate per layer (TAPS), or a grid of gates per weight (HyperGrid)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tangora.config.settings import AdapterSettings, Frozen, JointSettings, WeightSettings

__all__ = ["LayerGateSettings", "GatedAdapterSettings", "GatedJointSettings", "GatedWeightSettings"]

_FREE_EPOCHS, _EPOCHS = 3, 31  # of the released code, whose last epoch is number 30


class LayerGateSettings(Frozen):
    """When a layer's gate is open, and what an open one costs.

    >>> LayerGateSettings(variant="released").free
    0.0967741935483871
    """

    penalty: float = Field(default=1.0, ge=0, description="λ: what open gates cost in the loss")
    variant: Literal["paper", "released"] = Field(
        default="paper", description="λ is divided by the number of gates; or by 52, as in the released code"
    )
    penalty_free: float | None = Field(
        default=None, ge=0, le=1, description="fraction of the steps without penalty; default: 0, or 3/31 if released"
    )
    threshold: float = Field(default=0.1, gt=0, description="a gate of this value or more is open")
    gate_start: float = Field(default=0.15, gt=0, description="the value at which gates begin")
    gate_rate: float = Field(default=2e-3, gt=0, description="learning rate of the gates")

    @model_validator(mode="after")
    def _open_at_first(self) -> LayerGateSettings:
        if self.gate_start < self.threshold:  # with a change of zero, nothing would ever open it
            raise ValueError("gate_start must be at least the threshold: a closed gate of an untrained layer stays so")
        return self

    @property
    def free(self) -> float:
        """The fraction of the steps without penalty."""
        if self.penalty_free is not None:
            return self.penalty_free
        return _FREE_EPOCHS / _EPOCHS if self.variant == "released" else 0.0


class GatedAdapterSettings(AdapterSettings, LayerGateSettings):
    """The keys of a mode that trains a LoRA adapter with a gate per layer."""


class GatedWeightSettings(WeightSettings, LayerGateSettings):
    """The keys of a mode that trains the model's own weights with a gate per layer."""

    layers: Literal["linear", "all"] = Field(
        default="linear", description="gated: linear layers and convolutions; or embeddings and other weights too"
    )
    norms: Literal["train", "freeze"] = Field(default="train", description="normalization layers, which have no gates")


class GatedJointSettings(GatedAdapterSettings, JointSettings):
    """The keys of a mode that trains an adapter of all tasks, and a gated one for each task on top of it."""

    joint_ratio: float = Field(
        default=1.0, gt=0, description="steps of the joint training, as a multiple of training.steps times the tasks"
    )
