"""The models of ``fusion`` and ``evaluation`` in a recipe: what is fused and compared, and how it is scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tangora.config.frozen import Frozen
from tangora.config.fusion import FusionEntry

__all__ = ["EvaluationConfig", "FusionConfig", "StatisticsConfig", "SubsetConfig"]


class SubsetConfig(Frozen):
    """Which sets of tasks are fused."""

    sizes: list[int] | Literal["all"] = Field(default="all", description="numbers of tasks, each at least 2")
    per_size: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default="all", description="sampled by seed where there are more"
    )

    @field_validator("sizes")
    @classmethod
    def _at_least_two(cls, sizes: list[int] | str) -> list[int] | str:
        if not isinstance(sizes, str) and (not sizes or min(sizes) < 2):
            raise ValueError("sizes: each at least 2, and at least one size")
        return sizes


class StatisticsConfig(Frozen):
    """Which of an expert's training rows statistics are collected on, for methods that use statistics."""

    rows: int = Field(default=1000, ge=1, description="at most so many of each task, a sample by the recipe's seed")
    batch_size: int = Field(default=16, ge=1, description="rows per forward pass")


class FusionConfig(Frozen):
    """Which subsets, methods and selections."""

    subsets: SubsetConfig = Field(default=SubsetConfig(), description="which sets of tasks are fused")
    methods: list[FusionEntry] = Field(
        default_factory=lambda: [FusionEntry(method="average"), FusionEntry(method="task_arithmetic", weights=0.3)],
        min_length=1,
        description="the entries of the comparison: methods with their coefficients, searches and routers",
    )
    selection: list[Literal["validation", "oracle"]] = Field(
        default=["validation"],
        min_length=1,
        description="rows that choose from a grid; oracle: the test rows, an upper bound that says nothing about use",
    )
    statistics: StatisticsConfig = Field(
        default=StatisticsConfig(), description="rows that statistics of experts are collected on"
    )

    @model_validator(mode="after")
    def _unique(self) -> FusionConfig:
        seen: list[tuple[str, str, set[str], FusionEntry]] = []  # label, space, folders of fused adapters
        for entry in self.methods:
            for space in entry.spaces:
                label, folders = entry.label, self._folders(entry.label, space)
                for other, there, taken, earlier in seen:
                    if entry.modes and earlier.modes and not {*entry.modes} & {*earlier.modes}:
                        continue  # an entry without modes is for all of them
                    if (other, there) == (label, space):
                        raise ValueError(f"methods: two entries are called {label!r} in space {space}; give one a name")
                    if both := sorted(folders & taken):
                        what = f"fused adapters of {other!r} and {label!r} have one folder, {both[0]}"
                        raise ValueError(f"methods: {what}; give one another name")
                seen.append((label, space, folders, entry))
        return self

    def _folders(self, label: str, space: str) -> set[str]:
        """Return the folders in RUN/fused/MODE that an entry may have in a space."""
        folder = label if space == "delta" else f"{label}-{space}"
        return {folder} | ({f"{folder}-oracle"} if "oracle" in self.selection else set())


class EvaluationConfig(Frozen):
    """How scores are measured."""

    batch_size: int = Field(default=64, ge=1, description="rows per forward pass")
    others: bool = Field(
        default=True, description="score experts and fusions on the test rows of tasks that they are not of, too"
    )
    bootstrap: int = Field(default=1000, ge=100, description="resamples for the 95 % interval")
