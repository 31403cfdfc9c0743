"""The model of an entry of ``modes`` in a recipe: how adapters are made, or which existing ones are taken."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tangora.config.places import ModelText
from tangora.config.settings import LoraSettings, NamesMode, TrainingSettings
from tangora.support.seams import MODES
from tangora.support.validation import faults_of, refuse

__all__ = ["ModeConfig"]


class ModeConfig(NamesMode):
    """A mode's changes to the recipe's ``lora`` and ``training``, and the mode's own keys; or existing adapters.

    With ``experts``, these adapters are taken as they are, and tasks without one are trained. ``train`` then says how
    they answer: ``lora`` by changed weights, ``tangent`` in the expansion of the network.

    >>> ModeConfig(experts={"sst2": "adapters/sst2"}).experts
    {'sst2': 'adapters/sst2'}
    """

    lora: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe's lora that differ in this mode")
    training: dict[str, Any] = Field(
        default_factory=dict, description="keys of the recipe's training that differ in this mode"
    )
    experts: dict[str, Annotated[ModelText, Field(min_length=1)]] = Field(
        default_factory=dict, description="task -> an existing adapter, taken in place of training one"
    )
    same_base: bool = Field(
        default=False, description="accept experts that were made for another name, or other weights, of the base"
    )

    @field_validator("lora", "training")
    @classmethod
    def _single_keys(cls, changes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Refuse what is wrong by itself; `Recipe.finetune_config` checks the changed whole."""
        refuse([], faults_of(LoraSettings if info.field_name == "lora" else TrainingSettings, changes))
        return changes

    @model_validator(mode="after")
    def _has_what_it_changes(self) -> ModeConfig:
        if self.lora and "lora" not in MODES.get(self.train).settings.model_fields:
            raise ValueError(f"train: {self.train} has no adapter, so no lora")
        if self.experts and MODES.get(self.train).joint:
            raise ValueError(f"train: {self.train} trains all tasks at once: give experts in a mode with train: lora")
        if self.same_base and not self.experts:
            raise ValueError("same_base is for experts that are given, and there are none")
        return self
