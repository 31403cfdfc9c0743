"""The family `text-to-text`: a sequence-to-sequence model such as T5 answers texts with texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.config.tasks import BaseConfig, TaskConfig
from tangora.tasks.contract import AnswerForm
from tangora.tasks.templates import prompts, text_targets

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.batches import Collator
    from tangora.tasks.contract import Targets
    from tangora.tasks.generation import GenerationReadout
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task

__all__ = ["FAMILY", "TextToText"]


class TextToText:
    """Trained by the cross-entropy of target tokens, scored by greedy answers."""

    name = "text-to-text"
    base_settings = BaseConfig
    task_settings = TaskConfig
    unused: tuple[str, ...] = ()

    def form(self, config: TaskConfig, /) -> AnswerForm:
        """Return texts."""
        return AnswerForm("text", "tokens")

    def load(self, config: BaseConfig, /) -> Base:
        """Load the model and its tokenizer."""
        from tangora.tasks import generation  # deferred: torch

        return generation.load(config)

    def targets(self, tables: Mapping[str, Table], config: TaskConfig, /) -> Targets:
        """Return the target texts."""
        return text_targets(tables, config)

    def encode(
        self, table: Table, targets: Sequence[Any], config: TaskConfig, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return token ids of the prompts and of the target texts."""
        from tangora.tasks import generation  # deferred: torch

        return generation.encode(table, targets, config, base, _settings(base).max_new_tokens)

    def decides(self, config: TaskConfig, base: Base, /) -> Mapping[str, Any]:
        """Return the maximum number of generated tokens."""
        return {"scale": None, "head": None, "generation": _settings(base).max_new_tokens}

    def finish(self, task: Task, config: TaskConfig, base: Base, /) -> Task:
        """Return the task unchanged: the model has its own output layer."""
        return task

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return nothing: prediction needs only the settings."""
        return {}

    def collate(self, base: Base, /) -> Collator:
        """Return a collator that pads ids and labels on the right."""
        from tangora.tasks.batches import collator  # deferred: torch

        return collator(base)

    def readout(self, task: Task, base: Base, /) -> GenerationReadout:
        """Return a readout by the model's logits of target tokens, and greedy generation."""
        from tangora.tasks.generation import GenerationReadout  # deferred: torch

        return GenerationReadout(base, _settings(base).max_new_tokens)

    def followed(self, task: Task, /) -> None:
        """Return None: a token's logits are no linear function of unit features of its row."""

    def examples(self, table: Table, config: TaskConfig, /) -> Iterator[str]:
        """Iterate over the prompts."""
        return iter(prompts(table, config))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads an encoder and decoder."""
        return "AutoModelForSeq2SeqLM"


def _settings(base: Base) -> BaseConfig:
    assert isinstance(base.config, BaseConfig)
    return base.config


FAMILY = TextToText()
