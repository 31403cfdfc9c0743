"""The settings of the families with trained heads. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tangora.config.tasks import BaseSettings, TaskSettings

__all__ = [
    "ClassifierSettings",
    "HeadSettings",
    "ImageBaseSettings",
    "ImageSettings",
    "RowSettings",
    "TextBaseSettings",
    "TextSettings",
    "TokenBaseSettings",
    "TokenSettings",
]

METRICS = {"single": "accuracy", "multi": "micro_f1", "regression": "spearman"}
"""Problem -> the metric of a task that names none."""


class HeadSettings(BaseSettings):
    """A base whose tasks have heads."""

    layers: Literal["model", "linear"] = Field(
        default="model", description="of a head: as transformers' class for the task has them, or one linear layer"
    )


class _Pooled(HeadSettings):
    """A base whose heads read one vector per row."""

    pooling: Literal["pooler", "cls", "mean"] | None = Field(
        default=None, description="what a linear layer reads; layers: model reads what the class does"
    )

    @model_validator(mode="after")
    def _pooling_of_linear(self) -> _Pooled:
        if (self.pooling is not None) != (self.layers == "linear"):
            what = "a head with layers: linear needs pooling, and one with layers: model reads what its class does"
            raise ValueError(f"{what}: give both, or neither")
        return self


class TextBaseSettings(_Pooled):
    """The base of `text-classification`."""

    max_length: int = Field(default=128, ge=1, description="tokens kept of a text, or of both texts of a pair")


class ImageBaseSettings(_Pooled):
    """The base of `image-classification`."""


class TokenBaseSettings(HeadSettings):
    """The base of `token-classification`."""

    max_length: int = Field(default=128, ge=1, description="tokens kept of a row")


class ClassifierSettings(TaskSettings):
    """A task with a head."""

    head: Literal["new", "checkpoint"] = Field(
        default="new", description="first values of the head: new ones, or those of the base's checkpoint"
    )


class RowSettings(ClassifierSettings):
    """A task with a target per row."""

    problem: Literal["single", "multi", "regression"] = Field(
        default="single", description="one class per row, any number of labels, or a number"
    )
    label_columns: list[str] | None = Field(
        default=None, min_length=1, description="multi: a column of 0 and 1 for each label, in place of label"
    )
    separator: str | None = Field(default=None, min_length=1, description="multi: between the names in a text column")
    threshold: float = Field(default=0.5, gt=0, lt=1, description="multi: the least probability of a label")

    @model_validator(mode="before")
    @classmethod
    def _metric_of_the_problem(cls, raw: Any) -> Any:
        """Set ``metric`` by the problem, unless the task names one."""
        if not isinstance(raw, Mapping) or raw.get("metric") is not None or raw.get("metrics") is not None:
            return raw
        metric = METRICS.get(str(raw.get("problem", "single")))
        return raw if metric is None else {**raw, "metric": metric}

    @model_validator(mode="after")
    def _fits_the_problem(self) -> RowSettings:
        for key in ("label_columns", "separator", "threshold"):
            if self.problem != "multi" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for problem: multi, got problem: {self.problem}")
        if self.label_columns is not None:
            if self.separator is not None:
                raise ValueError("label_columns have no separator: leave it out")
            if len(set(self.label_columns)) < len(self.label_columns):
                raise ValueError(f"label_columns: each once; got {', '.join(self.label_columns)}")
            if isinstance(self.labels, dict):
                raise ValueError("labels of label_columns are a list of names, one for each column")
        if self.problem == "regression" and (self.labels is not None or self.labels_from is not None):
            raise ValueError("labels are names of classes, and problem: regression has none: leave them out")
        return self


class TextSettings(RowSettings):
    """A task of `text-classification`."""

    text: str = Field(default="text", description="text column")
    text_pair: str | None = Field(default=None, description="column of a second text, for tasks on pairs")


class ImageSettings(RowSettings):
    """A task of `image-classification`."""

    image: str = Field(default="image", description="image column, or the array's name in an .npz")


class TokenSettings(ClassifierSettings):
    """A task of `token-classification`."""

    tokens: str = Field(default="tokens", description="column of lists of words")
    tags: str = Field(default="tags", description="column of lists of tags, one for each word")
    lost: Literal["refuse", "outside"] = Field(
        default="refuse", description="rows of more words than max_length holds: refused, or the rest gets outside"
    )
    outside: str = Field(default="O", description="the tag of words that were cut off")

    @model_validator(mode="before")
    @classmethod
    def _metric_of_tags(cls, raw: Any) -> Any:
        """Set ``metric`` to F1 of spans, unless the task names one."""
        if not isinstance(raw, Mapping) or raw.get("metric") is not None or raw.get("metrics") is not None:
            return raw
        return {**raw, "metric": "span_f1"}

    @model_validator(mode="after")
    def _has_tags(self) -> TokenSettings:
        if self.label != type(self).model_fields["label"].default:
            raise ValueError("label: the column of this family is named by tags")
        return self
