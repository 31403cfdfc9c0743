"""The models of ``lora`` and ``training`` in a recipe, and the configuration of one training.

Each mode defines its own keys and default learning rate (`tangora.modes.contract.Mode`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from tangora.config.frozen import Frozen
from tangora.support.seams import MODES, SPACES
from tangora.support.validation import Fault, did_you_mean, faults_of, refuse, validate

__all__ = [
    "MEANS",
    "NAME",
    "REFERENCES",
    "AdapterSettings",
    "FinetuneConfig",
    "Frozen",
    "JointAdapterSettings",
    "JointSettings",
    "LoraSettings",
    "NamesMode",
    "SamplingSettings",
    "SpaceName",
    "TrainingSettings",
    "WeightSettings",
    "mode_name",
]

MEANS = ("mean", "mean_all")
"""What ``scores.csv`` has in place of a task in rows of means."""
REFERENCES = ("zero_shot", "expert")
"""What ``scores.csv`` has in place of a method in rows of the base and of experts."""


def _is_space(name: str) -> str:
    if name not in SPACES:
        raise ValueError(f"no such space. {did_you_mean(name, list(SPACES))}")
    return name


SpaceName = Annotated[str, AfterValidator(_is_space)]
"""The space in which task vectors are fused: ``delta``, ``factors``, ``core``, or one from another package."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""The pattern of names of modes, tasks and entries: a name becomes the name of a folder."""


class LoraSettings(Frozen):
    """The adapter's shape and initial values; names and meanings are those of peft."""

    r: int = Field(default=8, ge=1, description="rank: columns of B, and rows of A, at each adapted layer")
    alpha: float = Field(default=16, gt=0, description="the update is alpha / r * B A")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of an adapter's inputs set to 0 in training")
    target_modules: list[str] | Literal["all-linear"] = Field(
        default=["query", "value"], min_length=1, description="names of adapted layers, or the last part of them"
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="name of a layer, or a regular expression -> its r"
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="name of a layer, or a regular expression -> its alpha"
    )
    rslora: bool = Field(default=False, description="scaling alpha/sqrt(r) in place of alpha/r")
    init: bool | str = Field(
        default=True, description="peft's init_lora_weights; only kinds that keep the base weights"
    )
    a_init: Literal["shared", "per_task"] = Field(
        default="shared", description="the same A0 for every task, or one for each"
    )


class TrainingSettings(Frozen):
    """Steps, rates and schedule. Everything else has the default of transformers.TrainingArguments."""

    steps: int = Field(default=200, ge=1, description="optimizer steps")
    batch_size: int = Field(default=32, ge=1, description="rows per device and forward pass")
    gradient_accumulation: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    learning_rate: float | None = Field(
        default=None, gt=0, description="default: that of the mode, such as 1e-3 for lora"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="fraction of the steps")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        default="linear", description="of the learning rate after warm-up"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    bf16: bool = Field(default=False, description="forward passes of a training in bfloat16, by autocast")
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice, for less memory")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="steps between validations; None: only at the end"
    )
    early_stopping: int | None = Field(default=None, ge=1, description="validations without progress before stopping")
    checkpoint_every: int | None = Field(default=50, ge=1, description="steps between checkpoints to resume from")
    workers: int = Field(default=0, ge=0, description="data loader processes")
    sharpness: float = Field(
        default=0.0,
        ge=0,
        description="gradients are those of the worst point at this distance from the trained weights; twice the time",
    )
    orthogonality: float = Field(
        default=0.0, ge=0, description="weight of a penalty that draws singular values of LoRA's updates towards 1"
    )
    progressive: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps over which the chance of a LoRA layer to take part rises from 0 to 1",
    )
    averaged: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="the mean of the weights over this last share of the steps is the result; with early_stopping, it "
        "competes with the best step",
    )
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="where else losses are logged"
    )

    @property
    def rows(self) -> int:
        """Rows per device that pass forward and backward in all, counted twice if a step has two of these passes."""
        return self.steps * self.batch_size * self.gradient_accumulation * (2 if self.sharpness else 1)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.early_stopping and not self.evaluate_every:
            raise ValueError("early_stopping needs evaluate_every")
        return self


class WeightSettings(Frozen):
    """The keys of a mode that trains the model's own weights."""

    training: TrainingSettings = Field(default=TrainingSettings(), description="steps, rates and schedule")


class SamplingSettings(Frozen):
    """How a joint training draws rows from its tasks.

    >>> SamplingSettings(by="temperature", temperature=5).mixed
    False
    """

    by: Literal["turns", "uniform", "proportional", "temperature", "uncertainty"] = Field(
        default="turns",
        description="tasks in turn; drawn uniformly; by their numbers of rows; by these to the power 1 / temperature; "
        "the rows that the model is least certain about, among a batch of each task",
    )
    temperature: float = Field(default=10.0, gt=0, description="of by: temperature; 1 is proportional")
    mixed: bool = Field(default=False, description="draw a task for every row, rather than for every batch")
    scored: Literal["plain", "released"] = Field(
        default="plain",
        description="of by: uncertainty: without dropout, and rows without an entropy are kept in proportion; or as "
        "the released code does: with dropout, and such rows borrow the scores of another task",
    )

    @model_validator(mode="after")
    def _chosen_by_uncertainty(self) -> SamplingSettings:
        if self.by == "uncertainty" and self.mixed:
            raise ValueError("by: uncertainty mixes tasks anyway: leave mixed out")
        if self.by != "uncertainty" and self.scored != "plain":
            raise ValueError("scored is for by: uncertainty")
        return self


class AdapterSettings(WeightSettings):
    """The keys of a mode that trains a LoRA adapter."""

    lora: LoraSettings = Field(default=LoraSettings(), description="shape and initial values of the adapter")


class JointSettings(WeightSettings):
    """The keys of a mode that trains modules on several tasks at once."""

    sampling: SamplingSettings = Field(default=SamplingSettings(), description="how rows are drawn from the tasks")


class JointAdapterSettings(AdapterSettings, JointSettings):
    """The keys of a mode that trains one LoRA adapter on several tasks at once."""


def mode_name(train: str | None, linearize: str | None) -> str:
    """Return the registered name of a mode, also for the pair of keys that older recipes and adapters use.

    ``train: adapter`` with ``linearize: none``, ``module`` or ``model`` is ``lora``, ``l-lora`` or ``tangent``;
    ``train: full`` with ``none`` or ``model`` is ``full`` or ``full-tangent``.

    Raises:
        ValueError: the two contradict each other.

    >>> mode_name("adapter", "module"), mode_name("tangent", None)
    ('l-lora', 'tangent')
    """
    pair = (train or "adapter", linearize or "none")
    if linearize is None and train not in (None, "adapter"):
        return str(train)
    if pair in _OLD_NAMES:
        return _OLD_NAMES[pair]
    if pair == ("full", "module"):
        raise ValueError("train: full has no adapter, so no linearize: module")
    if pair[0] in ("adapter", "full"):
        raise ValueError(f"linearize is none, module or model; got {linearize!r}")
    raise ValueError(f"train: {train} determines what is linearized: leave linearize out")


_OLD_NAMES = {
    ("adapter", "none"): "lora",
    ("adapter", "module"): "l-lora",
    ("adapter", "model"): "tangent",
    ("full", "none"): "full",
    ("full", "model"): "full-tangent",
}


class NamesMode(Frozen):
    """A model that names a registered mode and may have that mode's own keys."""

    model_config = ConfigDict(extra="allow")

    train: str = Field(default="lora", description="a registered mode: lora, l-lora, tangent, full, full-tangent, ...")

    @model_validator(mode="before")
    @classmethod
    def _by_one_name(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        rest = {key: value for key, value in raw.items() if key not in ("train", "linearize")}
        return {**rest, "train": mode_name(raw.get("train"), raw.get("linearize"))}

    @model_validator(mode="after")
    def _keys_of_the_mode(self) -> Any:
        if self.train not in MODES:
            raise ValueError(f"no such mode: {self.train!r}; {did_you_mean(self.train, list(MODES))}")
        chosen, more = MODES.get(self.train).settings, self.model_extra or {}
        valid = sorted({*chosen.model_fields, *type(self).model_fields})
        odd = [key for key in more if key not in chosen.model_fields]
        faults = [Fault(f"train: {self.train} has no key {key!r}; {did_you_mean(key, valid)}") for key in odd]
        own = {key: value for key, value in more.items() if key not in odd}
        refuse(faults, faults_of(chosen, own, partial=True) if own else None)
        return self


class FinetuneConfig(NamesMode):
    """Everything that decides one training, apart from the base and the tasks.

    Keys beyond these are the mode's own; `settings` has all of them in the mode's own class.

    >>> FinetuneConfig(train="l-lora", lora={"r": 4}, training={"steps": 100})
    FinetuneConfig(train='l-lora', lora=LoraSettings(r=4), training=TrainingSettings(steps=100))
    """

    mode: str = Field(default="lora", pattern=NAME, description="what the recipe calls it: folders and tables do too")
    lora: LoraSettings = Field(default=LoraSettings())
    training: TrainingSettings = Field(default=TrainingSettings())
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _valid_for_the_mode(self) -> FinetuneConfig:
        _ = self.settings
        about_layers = [key for key in ("orthogonality", "progressive") if getattr(self.training, key)]
        if about_layers and not getattr(MODES.get(self.train), "plain_layers", False):
            what = f"training.{about_layers[0]} is about LoRA layers, and mode {self.train} trains others"
            raise ValueError(f"{what}: leave it out, or train lora or l-lora")
        return self

    @property
    def settings(self) -> Any:
        """The settings that the mode uses, as an instance of its ``settings`` class."""
        chosen = MODES.get(self.train).settings
        values = {**vars(self), **(self.model_extra or {})}
        return validate(chosen, {key: values[key] for key in chosen.model_fields if key in values}, f"mode {self.mode}")

    @property
    def learning_rate(self) -> float:
        """The configured rate, or the mode's default."""
        rate: float | None = self.training.learning_rate
        return rate if rate is not None else float(MODES.get(self.train).default_rate)

    def resolved(self) -> FinetuneConfig:
        """Return the configuration with the rate filled in, to be recorded: defaults may change between versions."""
        training = self.training.model_copy(update={"learning_rate": self.learning_rate})
        return self.model_copy(update={"training": training})
