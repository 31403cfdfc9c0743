"""The keys of the mode ``pha``, and what its adapters record of their modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tangora.config.places import PathText
from tangora.config.settings import Frozen, JointSettings, SamplingSettings

__all__ = ["JointPart", "ModuleShapes", "PrototypeSettings", "PrototypeSizes"]


class PrototypeSizes(Frozen):
    """The widths of the parts of ``pha``; the defaults are the paper's."""

    bottleneck: int = Field(default=64, ge=1, description="inner width of the adapters")
    prototype: int = Field(default=64, ge=1, description="width of prototypes, and of encoded rows")
    layer: int = Field(default=64, ge=1, description="width of the embedding of a layer")
    hidden: int = Field(default=128, ge=1, description="inner width of the generator, and of the retriever")
    code: int = Field(default=64, ge=1, description="width that the generator's heads read")


class PrototypeSettings(PrototypeSizes, JointSettings):
    """The keys of ``pha``: sizes, losses, and where new tasks start."""

    sampling: SamplingSettings = Field(
        default=SamplingSettings(by="proportional", mixed=True), description="how rows are drawn from the tasks"
    )
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing of the tasks' losses")
    instance_weight: float = Field(default=0.1, ge=0, description="of the loss between rows")
    prototype_weight: float = Field(default=0.1, ge=0, description="of the loss between rows and prototypes")
    temperature: float = Field(default=0.1, gt=0, description="of both losses")
    contrast: Literal["ordinary", "released"] = Field(
        default="ordinary", description="released: the row's own prototype is left out of the denominator"
    )
    keep: bool = Field(default=True, description="write generator, prototypes and retriever too: new tasks need them")
    start: PathText | None = Field(
        default=None, min_length=1, description="folder of an adapter of an earlier training"
    )
    tuned: Literal["prototype", "all"] = Field(
        default="prototype", description="what is trained after a start: the new prototypes, or everything"
    )
    start_rows: int = Field(default=1000, ge=1, description="train rows whose encodings select a new task's prototype")

    @field_validator("sampling", mode="before")
    @classmethod
    def _mixed_by_default(cls, raw: Any) -> Any:
        """Fill in this mode's own defaults: keys that a recipe leaves out would else be those of other modes."""
        if not isinstance(raw, Mapping):
            return raw
        return {"by": "proportional", "mixed": raw.get("by") != "uncertainty", **raw}

    @model_validator(mode="after")
    def _consistent(self) -> PrototypeSettings:
        mixed = self.sampling.mixed or self.sampling.by == "uncertainty"
        if self.instance_weight > 0 and not mixed:
            raise ValueError("the loss between rows needs rows of several tasks in a batch: set sampling.mixed: true")
        if self.tuned == "all" and self.start is None:
            raise ValueError("tuned is of a training with start; without it, everything is trained")
        return self

    @property
    def sizes(self) -> PrototypeSizes:
        """The widths."""
        return PrototypeSizes(**{name: getattr(self, name) for name in PrototypeSizes.model_fields})


class JointPart(Frozen):
    """What an adapter contains besides its own modules: the tasks with a prototype, in order, and the widths."""

    tasks: list[str] = Field(min_length=1)
    sizes: PrototypeSizes


class ModuleShapes(Frozen):
    """The modules of one task's adapter, as ``tangora.json`` records them.

    Attributes:
        width: of the hidden states.
        bottleneck: inner width of the adapters.
        shared: number of adapters that all tasks share.
        generated: number of adapters that the generator made for the task.
        nearest: the earlier task whose prototype a new task started from.
        joint: of the generator, the prototypes and the retriever; None if they were not kept.
    """

    width: int = Field(ge=1)
    bottleneck: int = Field(ge=1)
    shared: int = Field(ge=0)
    generated: int = Field(ge=1)
    nearest: str | None = None
    joint: JointPart | None = None
