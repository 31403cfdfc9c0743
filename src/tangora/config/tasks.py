"""The settings of a base model and of its tasks. A family may add keys.

    BaseSettings ── what every family has ──> BaseConfig ── with the keys of Tangora's own families
    TaskSettings ── what every family has ──> TaskConfig ── with the keys of Tangora's own families

A family from another package derives its settings from `BaseSettings` and `TaskSettings`. `base.family` in a recipe
determines which classes read the keys. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from tangora.config.places import ModelText, PathText
from tangora.config.settings import MEANS, NAME, Frozen
from tangora.config.source import SOURCE_KINDS, Source, SplitName
from tangora.support.files import digest
from tangora.support.hub import hub_reference
from tangora.support.seams import FAMILIES, METRICS
from tangora.support.validation import SkippedError, UnknownNameError, refuse, validate

__all__ = [
    "SOURCE_KINDS",
    "BaseConfig",
    "BaseSettings",
    "Source",
    "SplitName",
    "TaskConfig",
    "TaskSettings",
    "base_settings",
    "read_base",
    "read_tasks",
    "with_revision",
]


def with_revision(raw: Any, name: str, revision: str) -> Any:
    """Return a table in which ``org/name@revision`` stands under two keys: what it names, and its revision.

    Args:
        raw: the table; anything else is returned as it is.
        name, revision: the keys.

    Raises:
        ValueError: the revision is given twice, and differs.

    >>> with_revision({"model": "org/chat@v1"}, "model", "revision")
    {'model': 'org/chat', 'revision': 'v1'}
    """
    given = raw.get(name) if isinstance(raw, Mapping) else None
    reference = hub_reference(given) if isinstance(given, str) and "@" in given else None
    if reference is None:
        return raw
    if raw.get(revision) not in (None, reference.revision):
        raise ValueError(f"{name} and {revision} name two revisions: {reference.revision} and {raw[revision]}")
    return {**raw, name: str(replace(reference, revision=None)), revision: reference.revision}


class BaseSettings(Frozen):
    """The frozen pretrained model: the keys that every family has."""

    family: str = Field(description="how rows become inputs, and features answers; it decides the other keys")
    model: ModelText = Field(
        description="folder, Hub id, with a subfolder and a revision if need be (org/name/subfolder@revision), or "
        "'builtin:quickstart', 'builtin:swin' (made and cached by the run)"
    )
    revision: str | None = Field(default=None, description="commit, tag or branch of a model from the Hub")
    weights_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="that the frozen weights are held in; forward passes compute in machine.dtype, adapters in float32",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=None, description="of the weights of linear layers; the others are held in weights_dtype"
    )
    device_map: Literal["auto", "balanced", "sequential"] | dict[str, str | int] | None = Field(
        default=None, description="part -> device, to spread a large model over several; auto: by accelerate"
    )
    trust_remote_code: bool | Literal["asked"] = Field(
        default=False,
        description="run code from the model's repository; asked: a file says so, and nobody has agreed",
    )

    @model_validator(mode="before")
    @classmethod
    def _revision_in_name(cls, raw: Any) -> Any:
        return with_revision(raw, "model", "revision")

    @field_validator("family")
    @classmethod
    def _is_family(cls, name: str) -> str:
        if name not in FAMILIES:
            raise UnknownNameError("family", name, list(FAMILIES))
        return name

    @model_validator(mode="after")
    def _own_class(self) -> BaseSettings:
        wanted: type[BaseSettings] = FAMILIES.get(self.family).base_settings
        if not isinstance(self, wanted):
            raise ValueError(f"the settings of family {self.family} are {wanted.__name__}, not {type(self).__name__}")
        return self

    @property
    def weights(self) -> str:
        """The form in which the weights are held, such as ``bfloat16``."""
        return self.weights_dtype if self.quantization is None else f"{self.quantization} and {self.weights_dtype}"

    @property
    def held(self) -> dict[str, Any]:
        """The settings that decide the form of the weights."""
        return {"weights_dtype": self.weights_dtype, "quantization": self.quantization}

    def identity(self, fingerprint: str) -> str:
        """Return the key of results that are computed with weights of this fingerprint, in the form that is held."""
        return fingerprint if self.weights == "float32" else digest([fingerprint, self.weights])


class BaseConfig(BaseSettings):
    """The base model of one of Tangora's own families."""

    pooling: Literal["mean", "cls"] = Field(default="mean", description="text-zero-shot: token features to one vector")
    max_length: int = Field(default=64, ge=1, description="tokens kept of an input")
    max_new_tokens: int = Field(default=16, ge=1, description="text-to-text: tokens generated at evaluation")
    scale: float | None = Field(
        default=None, gt=0, description="logits = scale * cosine; the checkpoint's own by default, 20 for text"
    )


class TaskSettings(Frozen):
    """One task: rows, labels and metrics, the keys that every family has."""

    name: str = Field(pattern=NAME, description="of the task; each is different")
    source: Source = Field(description="where its rows are")
    label: str = Field(default="label", description="label column, or the array's name in an .npz")
    labels: list[str] | dict[str, str] | None = Field(
        None, description="class names in label order, or raw label value -> class name; default: the data set's own"
    )
    labels_from: PathText | None = Field(default=None, description="JSON file whose key 'labels' lists the class names")
    metric: str = Field(default="accuracy", description="what the task is scored and coefficients are chosen by")
    metrics: list[str] | None = Field(
        default=None, min_length=1, description="several, in place of `metric`: the first is the primary one"
    )
    limit: dict[SplitName, int] = Field(default_factory=dict, description="most rows kept of a split (a seeded sample)")
    test_fraction: float | None = Field(
        default=None, gt=0, lt=1, description="cut from a source of one file or folder; default: 0.2 of it"
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="cut from train when there is no validation split"
    )

    @field_validator("name")
    @classmethod
    def _is_no_mean(cls, name: str) -> str:
        if name in MEANS:
            raise ValueError(f"{name} is what scores.csv calls a mean over tasks: give the task another name")
        return name

    @model_validator(mode="before")
    @classmethod
    def _primary(cls, raw: Any) -> Any:
        """Set ``metric`` to the first of ``metrics``, unless both are given."""
        if isinstance(raw, Mapping) and "metric" not in raw and isinstance(raw.get("metrics"), list) and raw["metrics"]:
            return {**raw, "metric": raw["metrics"][0]}
        return raw

    @field_validator("metric", "metrics")
    @classmethod
    def _are_metrics(cls, value: str | list[str] | None) -> str | list[str] | None:
        for name in [value] if isinstance(value, str) else value or ():
            if name not in METRICS:
                raise UnknownNameError("metric", name, list(METRICS))
        return value

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Every metric, the primary one first."""
        return tuple(self.metrics or [self.metric])

    @model_validator(mode="after")
    def _consistent(self) -> TaskSettings:
        refuse(self._faults())
        return self

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong with several keys together."""
        if self.metric != self.all_metrics[0]:
            yield f"metrics: the first is the primary one, but metric is {self.metric}; leave metric out"
        if len(set(self.all_metrics)) < len(self.all_metrics):
            yield f"metrics: each once; got {', '.join(self.all_metrics)}"
        if self.labels is not None and self.labels_from is not None:
            yield "give labels or labels_from, not both"
        if self.test_fraction is not None and self.source.single is None:
            yield "test_fraction is for a source of one file or folder, which this one is not: leave it out"
        if any(n < 1 for n in self.limit.values()):
            yield "limit: a split needs at least 1 row"


class TaskConfig(TaskSettings):
    """One task of one of Tangora's own families."""

    text: str = Field(default="text", description="text column; or an 'image' column's name for image families")
    image: str = Field(default="image", description="image column, or the array's name in an .npz")
    templates: list[str] = Field(
        default=["{}"], min_length=1, description="zero-shot: prompts around a class name, averaged"
    )
    prompt: str | None = Field(default=None, description="text-to-text: input, such as 'Premise: {premise} ...'")
    target: str = Field(default="{label}", description="text-to-text: output, such as '{label}' or '{label:.1f}'")

    @model_validator(mode="after")
    def _templates_have_a_place(self) -> TaskConfig:
        if any("{}" not in t for t in self.templates):
            raise ValueError("templates: each needs a '{}' where the class name goes")
        return self


def base_settings(raw: Mapping[str, Any], where: str) -> BaseSettings:
    """Return the settings of a base model, as an instance of its family's class.

    Args:
        raw: the keys, ``family`` among them.
        where: the location that an error names.

    Raises:
        RecipeError: no such family, or a key or value is invalid.

    >>> base_settings({"family": "text-zero-shot", "model": "folder"}, "base").pooling
    'mean'
    """
    chosen: type[BaseSettings] = _class_of(raw, "base_settings")
    return validate(chosen, raw, where)


def read_base(raw: Any) -> Any:
    """Validate ``base`` of a recipe by the class of its family; leave anything else for pydantic to refuse."""
    return _class_of(raw, "base_settings").model_validate(raw) if isinstance(raw, Mapping) else raw


def read_tasks(raw: Any, info: ValidationInfo) -> Any:
    """Validate ``tasks`` of a recipe by the class of its base's family."""
    base = info.data.get("base") or ((info.context or {}).get("raw") or {}).get("base")  # the latter if it is refused
    family = base.get("family") if isinstance(base, Mapping) else getattr(base, "family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise SkippedError("which keys a task has depends on the family")
    chosen: Any = FAMILIES.get(family).task_settings
    return TypeAdapter(list[chosen]).validate_python(raw)


def settings_at(raw: Mapping[str, Any], location: tuple[int | str, ...]) -> tuple[type[Frozen] | None, int]:
    """Return the class that reads a location of a recipe, and how many parts of the location lead to it."""
    if location[:1] == ("base",):
        return _class_of(raw.get("base"), "base_settings"), 1
    if location[:1] == ("tasks",) and len(location) > 1:
        return _class_of(raw.get("base"), "task_settings"), 2
    return None, 0


def _class_of(raw: Any, which: Literal["base_settings", "task_settings"]) -> type[Any]:
    """Return the settings class of the family that ``raw`` names, or Tangora's own class if it names none."""
    family = raw.get("family") if isinstance(raw, Mapping) else getattr(raw, "family", None)
    if isinstance(family, str) and family in FAMILIES:
        chosen: type[Any] = getattr(FAMILIES.get(family), which)
        return chosen
    return BaseConfig if which == "base_settings" else TaskConfig
