"""How one adapter is made: the models of ``lora``, ``training`` and ``modes`` in a recipe."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

__all__ = [
    "DEFAULT_LEARNING_RATES",
    "NAME",
    "FinetuneConfig",
    "Frozen",
    "LoraSettings",
    "ModeConfig",
    "Space",
    "TrainingSettings",
]

Space = Literal["delta", "factors", "core"]
"""Where task vectors are fused: changes of weights, changes of factors, or changes in bases common to all."""

DEFAULT_LEARNING_RATES = {"full": 5e-5, "lora": 1e-3, "l-lora": 5e-3, "tangent": 5e-3, "full-tangent": 1e-4}
"""By what is trained; L-LoRA moves only B, whose gradient passes through a small random A₀, and wants more."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What modes, tasks and methods may be called: it becomes a folder's name."""


_YES_NO = {"yes": True, "on": True, "no": False, "off": False}
"""Bools of YAML 1.1, in which older recipes are written; a text to YAML 1.2, and so to a field of bools and texts."""


class Frozen(BaseModel):
    """Immutable, no unknown keys, no infinities, no number that is ``true``."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = list(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if bool not in kinds and (int in kinds or float in kinds) and any(isinstance(v, bool) for v in _values(value)):
            raise ValueError("a number, not true or false")
        return _YES_NO.get(value.lower(), value) if bool in kinds and isinstance(value, str) else value


def _kinds(annotation: Any) -> Iterator[Any]:
    """What a field's values may be, those in its lists and tables with them."""
    parts = get_args(annotation)
    yield from itertools.chain.from_iterable(map(_kinds, parts)) if parts else [annotation]


def _values(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]


class LoraSettings(Frozen):
    """The adapter's shape and start; the names and meanings are peft's."""

    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = Field(default=["query", "value"], min_length=1)
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    rslora: bool = Field(default=False, description="scaling alpha/sqrt(r) in place of alpha/r")
    init: bool | str = Field(
        default=True, description="peft's init_lora_weights; only kinds that keep the base weights"
    )
    a_init: Literal["shared", "per_task"] = Field(
        default="shared", description="the same A0 for every task, or one for each"
    )


class TrainingSettings(Frozen):
    """How long and how fast; everything else is transformers.TrainingArguments' own default."""

    steps: int = Field(default=200, ge=1, description="optimizer steps")
    batch_size: int = Field(default=32, ge=1, description="rows per device and forward pass")
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float | None = Field(
        default=None, gt=0, description="default by what is trained: see DEFAULT_LEARNING_RATES"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1, description="fraction of the steps")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    bf16: bool = False
    gradient_checkpointing: bool = False
    evaluate_every: int | None = Field(
        default=None, ge=1, description="steps between validations; None: only at the end"
    )
    early_stopping: int | None = Field(default=None, ge=1, description="validations without progress before stopping")
    checkpoint_every: int | None = Field(default=50, ge=1, description="steps between checkpoints to resume from")
    workers: int = Field(default=0, ge=0, description="data loader processes")
    report_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.early_stopping and not self.evaluate_every:
            raise ValueError("early_stopping needs evaluate_every")
        return self


class FinetuneConfig(Frozen):
    """Everything that decides one fine-tuning run, apart from the base and the task."""

    mode: str = Field(default="lora", pattern=NAME)
    train: Literal["adapter", "full"] = "adapter"
    linearize: Literal["none", "module", "model"] = "none"
    lora: LoraSettings = Field(default=LoraSettings())
    training: TrainingSettings = Field(default=TrainingSettings())
    seed: int = Field(default=0, ge=0, lt=2**32)

    @property
    def learning_rate(self) -> float:
        """The configured rate, or the default of what is trained."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        if self.train == "full":
            return DEFAULT_LEARNING_RATES["full-tangent" if self.linearize == "model" else "full"]
        return DEFAULT_LEARNING_RATES[{"none": "lora", "module": "l-lora", "model": "tangent"}[self.linearize]]

    def resolved(self) -> FinetuneConfig:
        """With the rate written out: what is recorded, since the default of one version is not that of the next."""
        training = self.training.model_copy(update={"learning_rate": self.learning_rate})
        return self.model_copy(update={"training": training})


class ModeConfig(Frozen):
    """What a mode changes: partial ``lora`` and ``training`` over the recipe's."""

    train: Literal["adapter", "full"] = "adapter"
    linearize: Literal["none", "module", "model"] = "none"
    lora: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> ModeConfig:
        if self.train == "full" and (self.linearize == "module" or self.lora):
            raise ValueError("train: full has no adapter, so no linearize: module and no lora")
        return self
