"""The family `causal-lm`: a decoder language model such as Llama continues prompts and chats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.config.language import LanguageModel, LanguageTask
from tangora.tasks.contract import AnswerForm

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.contract import Targets
    from tangora.tasks.language.collation import LanguageCollator
    from tangora.tasks.language.readout import LanguageReadout
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task

__all__ = ["FAMILY", "CausalLM"]


class CausalLM:
    """Trained by the cross-entropy of completions, scored by greedy answers or by likelihoods.

    `tangora.tasks.language` describes the flow of data.
    """

    name = "causal-lm"
    base_settings = LanguageModel
    task_settings = LanguageTask
    unused: tuple[str, ...] = ()

    def form(self, config: LanguageTask, /) -> AnswerForm:
        """Return texts, or likelihoods for plain texts."""
        return AnswerForm("likelihood" if config.form == "text" else "text", "tokens")

    def load(self, config: LanguageModel, /) -> Base:
        """Load the model and its tokenizer."""
        from tangora.tasks.language import model  # deferred: torch

        return model.load(config)

    def targets(self, tables: Mapping[str, Table], config: LanguageTask, /) -> Targets:
        """Return completions, all correct answers, or the sizes of plain texts."""
        from tangora.tasks.harness_rows import refuse_other_settings  # deferred: reading a recipe needs none of it
        from tangora.tasks.language import rows  # deferred likewise

        refuse_other_settings(tables, config)
        return rows.targets_of(tables, config)

    def encode(
        self, table: Table, targets: Sequence[Any], config: LanguageTask, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return tokens of prompts, completions and choices."""
        from tangora.tasks.language import encoding  # deferred: torch

        return encoding.encode(table, targets, config, base)

    def decides(self, config: LanguageTask, base: Base, /) -> Mapping[str, Any]:
        """Return how answers are generated, and the chat template."""
        from tangora.tasks.language import encoding, model  # deferred: torch

        return model.decides(config, base, encoding.most_generated(config, base))

    def finish(self, task: Task, config: LanguageTask, base: Base, /) -> Task:
        """Return the task with its settings, which the readout needs."""
        from tangora.tasks.language.task import LanguageModelTask  # deferred: torch

        return LanguageModelTask(**vars(task), config=config)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return nothing: prediction needs only the settings."""
        return {}

    def collate(self, base: Base, /) -> LanguageCollator:
        """Return a collator that aligns the rows at the end of their prompts."""
        from tangora.tasks.language.collation import LanguageCollator  # deferred: torch

        return LanguageCollator(getattr(base.processor, "pad_token_id", None) or 0, _settings(base).packing)

    def readout(self, task: Task, base: Base, /) -> LanguageReadout:
        """Return a readout by the model's own logits of target tokens."""
        from tangora.tasks.language.readout import LanguageReadout  # deferred: torch
        from tangora.tasks.language.task import of_task  # deferred: torch

        return LanguageReadout(base, of_task(task).config)

    def followed(self, task: Task, /) -> None:
        """Return None: a token's logits are no linear function of unit features of its row."""

    def examples(self, table: Table, config: LanguageTask, /) -> Iterator[str]:
        """Iterate over prompts, last messages or texts."""
        from tangora.tasks.language import rows  # deferred: reading a recipe needs none of it

        return iter(rows.shown(table, config))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads a decoder with its output layer."""
        return "AutoModelForCausalLM"


def _settings(base: Base) -> LanguageModel:
    assert isinstance(base.config, LanguageModel)
    return base.config


FAMILY = CausalLM()
