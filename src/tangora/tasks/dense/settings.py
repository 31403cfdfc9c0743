"""The settings of the family `image-dense`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tangora.config.tasks import BaseSettings, TaskSettings

__all__ = ["DenseBaseSettings", "DenseSettings"]

METRICS = {"segmentation": "mean_iou", "binary": "f_measure", "regression": "rmse_map"}
"""Problem -> the metric of a task that names none."""


class DenseBaseSettings(BaseSettings):
    """The base of `image-dense`."""

    width: int = Field(default=64, ge=1, description="of the decoders: features that stages are projected to")
    levels: int = Field(
        default=4, ge=1, description="layers that decoders read of a network without stages, such as ViT, evenly spaced"
    )


class DenseSettings(TaskSettings):
    """A task of `image-dense`: ``label`` is the column with the maps."""

    problem: Literal["segmentation", "binary", "regression"] = Field(
        default="segmentation", description="a class, a mark or a number for every pixel"
    )
    image: str = Field(default="image", description="image column, or the array's name in an .npz")
    ignored: float | None = Field(
        default=None, description="the value of pixels that do not count; segmentation: default 255"
    )
    scale: float = Field(default=1.0, gt=0, description="regression: numbers are values divided by this")
    loss: Literal["squared", "absolute"] = Field(default="squared", description="regression: the error of a pixel")
    positive_weight: float = Field(default=1.0, gt=0, description="binary: of marked pixels in the loss")

    @model_validator(mode="before")
    @classmethod
    def _metric_of_the_problem(cls, raw: Any) -> Any:
        """Set ``metric`` by the problem, unless the task names one."""
        if not isinstance(raw, Mapping) or raw.get("metric") is not None or raw.get("metrics") is not None:
            return raw
        return {**raw, "metric": METRICS.get(str(raw.get("problem", "segmentation")), "mean_iou")}

    @model_validator(mode="after")
    def _fits_the_problem(self) -> DenseSettings:
        fields = type(self).model_fields
        for problem, keys in (("regression", ("scale", "loss")), ("binary", ("positive_weight",))):
            for key in keys:
                if self.problem != problem and getattr(self, key) != fields[key].default:
                    raise ValueError(f"{key} is for problem: {problem}, got problem: {self.problem}")
        if self.problem != "segmentation" and (self.labels is not None or self.labels_from is not None):
            raise ValueError(f"labels are names of classes, and problem: {self.problem} has none: leave them out")
        return self
