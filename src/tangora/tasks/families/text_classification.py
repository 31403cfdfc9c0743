"""The family `text-classification`: an encoder with a trained head for every task, on texts or pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.tasks.classification.forms import row_form
from tangora.tasks.classification.settings import TextBaseSettings, TextSettings
from tangora.tasks.classification.targets import row_targets
from tangora.tasks.contract import AnswerForm

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.batches import Collator
    from tangora.tasks.classification.base import ClassifierBase
    from tangora.tasks.classification.readouts import RowReadout
    from tangora.tasks.classification.tasks import HeadTask
    from tangora.tasks.contract import Targets
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task

__all__ = ["FAMILY", "TextClassification"]


class TextClassification:
    """Logits as those of transformers' ``AutoModelForSequenceClassification``; see `tangora.tasks.classification`."""

    name = "text-classification"
    base_settings = TextBaseSettings
    task_settings = TextSettings
    unused: tuple[str, ...] = ()

    def form(self, config: TextSettings, /) -> AnswerForm:
        """Return classes, labels or numbers, by the problem."""
        return row_form(config)

    def load(self, config: TextBaseSettings, /) -> ClassifierBase:
        """Load the backbone of the class, its tokenizer, and the checkpoint's head if it has one."""
        from tangora.tasks.classification import base  # deferred: torch

        return base.classifier_base(config, base.tokenizer_of(config))

    def targets(self, tables: Mapping[str, Table], config: TextSettings, /) -> Targets:
        """Return class numbers, sorted numbers of labels, or numbers; every row has its texts."""
        from tangora.tasks.classification import inputs  # deferred: torch

        found = row_targets(tables, config)
        for table in tables.values():  # before a model is loaded, which `encode` needs
            inputs.texts(table, config)
        return found

    def encode(
        self, table: Table, targets: Sequence[Any], config: TextSettings, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return token ids of the texts, and the numbers of labels if rows have several."""
        from tangora.tasks.classification import inputs  # deferred: torch

        encoded = inputs.text_inputs(table, config, base)
        encoded |= inputs.label_tensors(targets, config)
        return encoded

    def decides(self, config: TextSettings, base: Base, /) -> Mapping[str, Any]:
        """Return layers and values of the head, what it reads, problem and threshold."""
        from tangora.tasks.classification.base import decides, of_base  # deferred: torch

        return {**decides(config, of_base(base)), "problem": config.problem, "threshold": config.threshold}

    def finish(self, task: Task, config: TextSettings, base: Base, /) -> HeadTask:
        """Return the task with its settings."""
        from tangora.tasks.classification.tasks import finish  # deferred: torch

        return finish(task, config)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return what the head reads."""
        from tangora.tasks.classification.base import of_base  # deferred: torch

        return {"reads": of_base(base).reads}

    def collate(self, base: Base, /) -> Collator:
        """Return a collator that pads ids on the right."""
        from tangora.tasks.classification.inputs import HeadCollator  # deferred: torch

        return HeadCollator(base.processor.pad_token_id or 0)

    def readout(self, task: Task, base: Base, /) -> RowReadout:
        """Return a readout with the head's first values."""
        from tangora.tasks.classification.tasks import row_readout  # deferred: torch

        return row_readout(task, base)

    def followed(self, task: Task, /) -> None:
        """Return None: a head reads features with their length, of which unit features have none."""

    def examples(self, table: Table, config: TextSettings, /) -> Iterator[str]:
        """Iterate over the texts; the two of a pair are joined."""
        columns = [config.text] if config.text_pair is None else [config.text, config.text_pair]
        return (" · ".join(texts) for texts in zip(*map(table.column, columns), strict=True))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads an encoder."""
        return "AutoModel"


FAMILY = TextClassification()
