"""The settings of the family `causal-lm`: the base model, and the tasks that it answers. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tangora.config.tasks import BaseSettings, TaskSettings
from tangora.support.validation import refuse

__all__ = ["PROMPT", "TARGET", "LanguageModel", "LanguageTask", "RowForm"]

PROMPT, TARGET = "{prompt}", "{completion}"

RowForm = Literal["prompt", "messages", "text", "choices"]
"""What a row contains: a prompt and its completion, a conversation, a plain text, or a prompt with choices."""


class LanguageModel(BaseSettings):
    """A decoder language model."""

    max_length: int = Field(default=1024, ge=2, description="most tokens of a row, or of the model if it has fewer")
    max_new_tokens: int = Field(default=64, ge=1, description="most tokens that are generated for an answer")
    packing: bool = Field(default=False, description="train on the rows of a batch as one sequence without padding")


class LanguageTask(TaskSettings):
    """A task of a decoder language model. A row is a prompt with a completion, a conversation, or a plain text."""

    may_be_wordless: ClassVar[bool] = False
    """Whether a row may have no prompt, since it has something else to answer."""

    metric: str = Field(default="exact_match", description="what the task is scored and coefficients are chosen by")
    prompt: str = Field(default=PROMPT, description="input, made of the columns of a row")
    target: str = Field(default=TARGET, description="output, made of the columns of a row, such as '{label}'")
    separator: str = Field(default=" ", description="between prompt and completion, except in a chat")
    references: str | None = Field(default=None, description="column with all correct answers of a row, as a list")
    messages: str | None = Field(default=None, description="column with conversations: lists of role and content")
    turns: Literal["last", "all"] = Field(default="last", description="messages: the assistant's turns to learn from")
    text: str | None = Field(default=None, description="column with plain texts: their likelihood is scored")
    choices: str | list[str] | None = Field(
        default=None, description="column with the choices of a row, or the choices of all rows: the likeliest one wins"
    )
    normalize: Literal["tokens", "characters", "none"] = Field(
        default="tokens", description="choices: what the log-likelihood is divided by"
    )
    chat: bool = Field(default=False, description="put prompt and completion into the tokenizer's chat template")
    chat_arguments: dict[str, bool | int | str] = Field(
        default_factory=dict, description="of the chat template, such as {enable_thinking: false}"
    )
    system: str | None = Field(default=None, description="a system message in front of a chat")
    loss: Literal["completion", "all"] = Field(default="completion", description="tokens that are learned")
    stop: list[str] = Field(default_factory=list, description="texts that end an answer, and are not part of it")
    max_new_tokens: int | None = Field(default=None, ge=1, description="that of the base by default")
    truncation: Literal["refuse", "left", "right"] = Field(
        default="refuse", description="the side at which a prompt that is too long loses tokens"
    )

    @model_validator(mode="before")
    @classmethod
    def _metric_of_form(cls, raw: Any) -> Any:
        """Set the metric that fits the form of the rows, unless one is given."""
        if not isinstance(raw, Mapping) or raw.get("metric") or raw.get("metrics"):
            return raw
        fitting = "perplexity" if raw.get("text") else "accuracy" if raw.get("choices") else "exact_match"
        return {**raw, "metric": fitting}

    @model_validator(mode="after")
    def _one_form(self) -> LanguageTask:
        refuse(self._faults_of_form())
        return self

    def _faults_of_form(self) -> Iterator[str]:
        """Yield what is wrong with several keys together."""
        given = [key for key in ("messages", "text", "choices") if getattr(self, key) is not None]
        if len(given) > 1:
            yield f"give at most one of messages, text and choices; got {', '.join(given)}"
        own = tuple(type(self).model_fields[key].default for key in ("prompt", "target"))
        if self.form in ("messages", "text") and (self.prompt, self.target) != own:
            yield f"prompt and target are made of columns; with {self.form}, leave them out"
        if self.form == "text" and (self.chat or self.system or self.references):
            yield "a plain text has no chat, system message or references"
        if isinstance(self.choices, list) and len(set(self.choices)) < max(2, len(self.choices)):
            yield "choices: give at least two, all different"
        if self.system is not None and not self.chatting:
            yield "system: a system message needs chat: true, or messages"
        if not self.prompt and not self.may_be_wordless:
            yield "prompt: it must not be empty"
        if not self.prompt and self.chat:
            yield "chat: a chat begins with the user's words; give a prompt"
        if self.turns == "all" and self.form != "messages":
            yield "turns: only rows with messages have several"
        if self.chatting and self.truncation == "right":
            yield "truncation: right would drop the place where an answer begins; choose left"
        if self.chat_arguments and not self.chatting:
            yield "chat_arguments: they need chat: true, or messages"
        if any(not text for text in self.stop):
            yield "stop: a text that ends an answer must not be empty"

    @property
    def form(self) -> RowForm:
        """What a row contains."""
        if self.messages is not None:
            return "messages"
        return "text" if self.text is not None else "choices" if self.choices is not None else "prompt"

    @property
    def chatting(self) -> bool:
        """Whether rows are put into the tokenizer's chat template."""
        return self.chat or self.messages is not None
