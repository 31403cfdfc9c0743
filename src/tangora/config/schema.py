"""The models of a recipe: frozen, and every unknown key an error.

    base      which pretrained model, and how its features become logits
    tasks     the data sets: where, which columns, which labels, which metric
    lora      the adapter: rank, alpha, targets, initial values   (defaults for every mode)
    training  rate, steps, schedule                               (defaults for every mode)
    modes     name -> what differs: linearize, full, lora.*, training.*
    fusion    subsets, methods with their grids or search, how coefficients are selected
    evaluation  batch size, bootstrap
    executor  where the jobs of the run are done

`Recipe.finetune_config` resolves one mode. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from tangora.config.executor import ExecutorConfig
from tangora.config.fusion import FusionEntry, check_search
from tangora.config.settings import NAME, FinetuneConfig, Frozen, LoraSettings, ModeConfig, TrainingSettings
from tangora.errors import RecipeError
from tangora.support.seams import METRICS
from tangora.support.validation import did_you_mean, validate

__all__ = [
    "BaseConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "FusionConfig",
    "FusionEntry",
    "LoraSettings",
    "ModeConfig",
    "Recipe",
    "Source",
    "SubsetConfig",
    "TaskConfig",
    "TrainingSettings",
]

Family = Literal["image-zero-shot", "text-zero-shot", "text-to-text"]
SplitName = Literal["train", "validation", "test"]


class BaseConfig(Frozen):
    """The frozen pretrained model."""

    family: Family
    model: str = Field(description="Hub id, folder, or 'builtin:quickstart' (made and cached by the run)")
    revision: str | None = None
    pooling: Literal["mean", "cls"] = Field(default="mean", description="text-zero-shot: token features to one vector")
    max_length: int = Field(default=64, ge=1, description="tokens kept of an input")
    max_new_tokens: int = Field(default=16, ge=1, description="text-to-text: tokens generated at evaluation")
    scale: float | None = Field(
        default=None, gt=0, description="logits = scale * cosine; the checkpoint's own by default, 20 for text"
    )
    trust_remote_code: bool = Field(default=False, description="run code from the model's repository")


class Source(Frozen):
    """Where a task's rows are: exactly one of the first six keys."""

    hub: str | None = Field(default=None, description="data set id on the Hugging Face Hub")
    parquet: dict[SplitName, str] | None = None
    csv: dict[SplitName, str] | None = None
    jsonl: dict[SplitName, str] | None = None
    imagefolder: dict[SplitName, str] | None = Field(
        default=None, description="split -> folder with one folder a class"
    )
    npz: dict[SplitName, str] | None = Field(default=None, description="split -> .npz with arrays of images and labels")
    builtin: str | None = Field(default=None, description="a data set of tangora.quickstart")
    config: str | None = Field(default=None, description="hub: configuration (subset) name")
    revision: str | None = Field(default=None, description="hub: commit or tag")
    splits: dict[SplitName, str] = Field(
        default_factory=dict, description="hub: our split -> theirs, slices such as 'train[:1000]' allowed"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        given = [k for k in SOURCE_KINDS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(SOURCE_KINDS)}; got {', '.join(given) or 'none'}")
        files = getattr(self, given[0])
        if isinstance(files, dict) and not {"train", "test"} <= files.keys():
            raise ValueError(f"{given[0]} needs a train and a test split; got {', '.join(files) or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """Which of `SOURCE_KINDS` is given."""
        return next(k for k in SOURCE_KINDS if getattr(self, k) is not None)


SOURCE_KINDS = ("hub", "parquet", "csv", "jsonl", "imagefolder", "npz", "builtin")


class TaskConfig(Frozen):
    """One task: rows, columns, labels, metric."""

    name: str = Field(pattern=NAME)
    source: Source
    text: str = Field(default="text", description="text column; or an 'image' column's name for image families")
    image: str = Field(default="image", description="image column, or the array's name in an .npz")
    label: str = Field(default="label", description="label column, or the array's name in an .npz")
    labels: list[str] | dict[str, str] | None = Field(
        None, description="class names in label order, or raw label value -> class name; default: the data set's own"
    )
    labels_from: str | None = Field(default=None, description="JSON file whose key 'labels' lists the class names")
    templates: list[str] = Field(
        default=["{}"], min_length=1, description="zero-shot: prompts around a class name, averaged"
    )
    prompt: str | None = Field(default=None, description="text-to-text: input, such as 'Premise: {premise} ...'")
    target: str = Field(default="{label}", description="text-to-text: output, such as '{label}' or '{label:.1f}'")
    metric: str = Field(default="accuracy", description="what the task is scored and coefficients are chosen by")
    metrics: list[str] | None = Field(
        default=None, min_length=1, description="several, in place of `metric`: the first is the primary one"
    )
    limit: dict[SplitName, int] = Field(default_factory=dict, description="most rows kept of a split (a seeded sample)")
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="cut from train when there is no validation split"
    )

    @model_validator(mode="before")
    @classmethod
    def _primary(cls, raw: Any) -> Any:
        """The first of ``metrics`` is ``metric``, unless both are given."""
        if isinstance(raw, Mapping) and "metric" not in raw and isinstance(raw.get("metrics"), list) and raw["metrics"]:
            return {**raw, "metric": raw["metrics"][0]}
        return raw

    @field_validator("metric", "metrics")
    @classmethod
    def _known(cls, value: str | list[str] | None) -> str | list[str] | None:
        for name in [value] if isinstance(value, str) else value or ():
            if name not in METRICS:
                raise ValueError(f"no such metric, got {name!r}: {did_you_mean(name, list(METRICS))}")
        return value

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Every metric, the primary one first."""
        return tuple(self.metrics or [self.metric])

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        if self.metric != self.all_metrics[0]:
            raise ValueError(f"metrics: the first is the primary one, but metric is {self.metric}; leave metric out")
        if len(set(self.all_metrics)) < len(self.all_metrics):
            raise ValueError(f"metrics: each once; got {', '.join(self.all_metrics)}")
        if self.labels is not None and self.labels_from is not None:
            raise ValueError("give labels or labels_from, not both")
        if any(n < 1 for n in self.limit.values()):
            raise ValueError("limit: a split needs at least 1 row")
        if any("{}" not in t for t in self.templates):
            raise ValueError("templates: each needs a '{}' where the class name goes")
        return self


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
    """How much of an expert's training rows is looked at, for methods that are given statistics of them."""

    rows: int = Field(default=1000, ge=1, description="at most so many of each task, a sample by the recipe's seed")
    batch_size: int = Field(default=16, ge=1)


class FusionConfig(Frozen):
    """Which subsets, methods and selections."""

    subsets: SubsetConfig = Field(default=SubsetConfig())
    methods: list[FusionEntry] = Field(
        default_factory=lambda: [FusionEntry(method="average"), FusionEntry(method="task_arithmetic", weights=0.3)],
        min_length=1,
    )
    selection: list[Literal["validation", "oracle"]] = Field(default=["validation"], min_length=1)
    statistics: StatisticsConfig = Field(default=StatisticsConfig())

    @model_validator(mode="after")
    def _unique(self) -> FusionConfig:
        seen: set[tuple[str, str, str]] = set()
        for entry in self.methods:
            for space in entry.spaces:
                for mode in entry.modes or ["*"]:
                    if (entry.label, space, mode) in seen:
                        raise ValueError(
                            f"methods: two entries are called {entry.label!r} in space {space}; give one a name"
                        )
                    seen.add((entry.label, space, mode))
        return self


class EvaluationConfig(Frozen):
    """How scores are measured."""

    batch_size: int = Field(default=64, ge=1)
    bootstrap: int = Field(default=1000, ge=100, description="resamples for the 95 % interval")


class Recipe(Frozen):
    """A run, whole."""

    name: str = Field(pattern=NAME)
    title: str = ""
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    data: dict[str, str] = Field(default_factory=dict, description="values for ${data.KEY} in any path of the recipe")
    base: BaseConfig
    tasks: list[TaskConfig] = Field(min_length=1)
    lora: LoraSettings = Field(default=LoraSettings())
    training: TrainingSettings = Field(default=TrainingSettings())
    modes: dict[str, ModeConfig] = Field(
        default_factory=lambda: {"lora": ModeConfig(), "l-lora": ModeConfig(linearize="module")}, min_length=1
    )
    fusion: FusionConfig = Field(default_factory=FusionConfig)
    evaluation: EvaluationConfig = Field(default=EvaluationConfig())
    executor: ExecutorConfig = Field(
        default_factory=ExecutorConfig, description="where jobs are done; changes no result"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [t.name for t in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: names must differ; got {', '.join(names)}")
        for mode in self.modes:
            if not re.match(NAME, mode):
                raise ValueError(f"modes: {mode!r} is not a name (letters, digits, '.', '_', '-')")
            self.finetune_config(mode)
        sizes = self.fusion.subsets.sizes
        if not isinstance(sizes, str) and max(sizes) > len(names):
            raise ValueError(f"fusion.subsets.sizes: there are {len(names)} tasks; got {max(sizes)}")
        for entry in self.fusion.methods:
            if unknown := set(entry.modes or ()) - set(self.modes):
                raise ValueError(f"fusion.methods: {entry.label} names unknown modes {', '.join(sorted(unknown))}")
            fused = range(2, len(names) + 1) if isinstance(sizes, str) else sizes
            if entry.sizes is not None and not set(entry.sizes) & set(fused):
                got = f"{entry.label} is for subsets of {entry.sizes} tasks, and there are those of {list(fused)}"
                raise ValueError(f"fusion.methods: {got}")
            modes = {name: settings.linearize for name, settings in self.modes.items()}
            check_search(entry, modes, self.base.family)
        return self

    def finetune_config(self, mode: str) -> FinetuneConfig:
        """The recipe's ``lora`` and ``training`` with the mode's changes laid over them, the rate written out.

        Raises:
            RecipeError: the mode is unknown, or one of its keys is.
        """
        if mode not in self.modes:
            raise RecipeError("no such mode", got=mode, where="modes", fix=did_you_mean(mode, list(self.modes)))
        chosen = self.modes[mode]
        lora = {**self.lora.model_dump(), **chosen.lora}
        training = {**self.training.model_dump(), **chosen.training}
        return FinetuneConfig(
            mode=mode,
            train=chosen.train,
            linearize=chosen.linearize,
            lora=validate(LoraSettings, lora, f"modes.{mode}.lora"),
            training=validate(TrainingSettings, training, f"modes.{mode}.training"),
            seed=self.seed,
        ).resolved()

    def to_yaml(self) -> str:
        """The resolved recipe, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
