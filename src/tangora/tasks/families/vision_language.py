"""The family `vision-language`: a frozen decoder, with a frozen vision tower beside it, answers questions on images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.config.vision_language import VisionLanguageModel, VisionLanguageTask
from tangora.tasks.contract import AnswerForm

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.contract import Targets
    from tangora.tasks.language.readout import LanguageReadout
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task
    from tangora.tasks.vision_language.rows import VisionLanguageCollator

__all__ = ["FAMILY", "VisionLanguage"]


class VisionLanguage:
    """Trained by the cross-entropy of answers, scored by greedy answers: as `causal-lm`, with an image in each row.

    The base alone answers from the question. An adapter that adds modules connects the towers (mode ``ep-alm``).
    `tangora.tasks.vision_language` describes the flow of data.
    """

    name = "vision-language"
    base_settings = VisionLanguageModel
    task_settings = VisionLanguageTask
    unused: tuple[str, ...] = ()
    towers = ("vision",)
    """The keys of ``base`` that name further models: no class of transformers loads the backbone."""

    def form(self, config: VisionLanguageTask, /) -> AnswerForm:
        """Return texts, or likelihoods for plain texts."""
        return AnswerForm("likelihood" if config.form == "text" else "text", "tokens")

    def load(self, config: VisionLanguageModel, /) -> Base:
        """Load both towers, the tokenizer and the image processor."""
        from tangora.tasks.vision_language import backbone  # deferred: torch

        return backbone.load(config)

    def targets(self, tables: Mapping[str, Table], config: VisionLanguageTask, /) -> Targets:
        """Return answers, all correct answers, or the sizes of plain texts."""
        from tangora.tasks.language import rows  # deferred: reading a recipe needs none of it

        return rows.targets_of(tables, config)

    def encode(
        self, table: Table, targets: Sequence[Any], config: VisionLanguageTask, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return tokens of questions, answers and choices, and pixels."""
        from tangora.tasks.vision_language import rows  # deferred: torch

        return rows.encode(table, targets, config, base)

    def decides(self, config: VisionLanguageTask, base: Base, /) -> Mapping[str, Any]:
        """Return how answers are generated, and the chat template."""
        from tangora.tasks.language import encoding, model  # deferred: torch

        return model.decides(config, base, encoding.most_generated(config, base))

    def finish(self, task: Task, config: VisionLanguageTask, base: Base, /) -> Task:
        """Return the task with its settings, which the readout needs."""
        from tangora.tasks.language.task import LanguageModelTask  # deferred: torch

        return LanguageModelTask(**vars(task), config=config)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return how images are resized, cropped and normalized."""
        from tangora.tasks.vision_language.rows import of_base  # deferred: torch

        return {"preprocessing": of_base(base).images.to_dict()}

    def collate(self, base: Base, /) -> VisionLanguageCollator:
        """Return a collator that aligns the rows at the end of their questions, and stacks pixels."""
        from tangora.tasks.vision_language.rows import VisionLanguageCollator  # deferred: torch

        return VisionLanguageCollator(getattr(base.processor, "pad_token_id", None) or 0)

    def readout(self, task: Task, base: Base, /) -> LanguageReadout:
        """Return a readout by the decoder's own logits of target tokens."""
        from tangora.tasks.language.readout import LanguageReadout  # deferred: torch
        from tangora.tasks.language.task import of_task  # deferred: torch

        return LanguageReadout(base, of_task(task).config)

    def followed(self, task: Task, /) -> None:
        """Return None: a token's logits are no linear function of unit features of its row."""

    def examples(self, table: Table, config: VisionLanguageTask, /) -> Iterator[str | Image]:
        """Iterate over questions; over images if the rows have none."""
        from tangora.tasks.language import rows  # deferred: reading a recipe needs none of it

        if config.prompt or config.form != "prompt":
            return iter(rows.shown(table, config))
        from tangora.tasks.images import rgb  # deferred: torch

        return (rgb(row[config.image], table.place(i)) for i, row in enumerate(table.rows([config.image])))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads what configures the backbone; none loads both towers."""
        return "AutoModel"


FAMILY = VisionLanguage()
