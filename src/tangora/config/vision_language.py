"""The settings of the family `vision-language`: the two models, and the tasks. Nothing here imports torch."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from tangora.config.language import LanguageTask
from tangora.config.places import ModelText
from tangora.config.tasks import BaseSettings, with_revision

__all__ = ["ANSWER", "QUESTION", "VisionLanguageModel", "VisionLanguageTask"]

QUESTION, ANSWER = "{question}", "{answer}"


class VisionLanguageModel(BaseSettings):
    """A decoder language model, and a vision tower beside it. ``model`` and ``revision`` are those of the decoder."""

    vision: ModelText = Field(description="the vision tower: Hub id, folder, or 'builtin:quickstart'")
    vision_revision: str | None = Field(default=None, description="hub: commit or tag of the vision tower")
    max_length: int = Field(default=1024, ge=2, description="most tokens of a row, or of the model if it has fewer")
    max_new_tokens: int = Field(default=64, ge=1, description="most tokens that are generated for an answer")

    @model_validator(mode="before")
    @classmethod
    def _revision_of_vision(cls, raw: Any) -> Any:
        return with_revision(raw, "vision", "vision_revision")


class VisionLanguageTask(LanguageTask):
    """A task of images: a row has an image, a question or none, and an answer."""

    may_be_wordless: ClassVar[bool] = True

    image: str = Field(default="image", description="image column, or the array's name in an .npz")
    prompt: str = Field(
        default=QUESTION, description="question, made of the columns of a row; '' for none, as of captions"
    )
    target: str = Field(default=ANSWER, description="answer, made of the columns of a row, such as '{label}'")
