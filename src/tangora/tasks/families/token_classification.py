"""The family `token-classification`: an encoder with a trained head that gives every word a tag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.tasks.classification.settings import TokenBaseSettings, TokenSettings
from tangora.tasks.classification.targets import tag_targets
from tangora.tasks.contract import AnswerForm

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.tasks.base import Base
    from tangora.tasks.batches import Collator
    from tangora.tasks.classification.base import ClassifierBase
    from tangora.tasks.classification.readouts import TagReadout
    from tangora.tasks.classification.tasks import HeadTask
    from tangora.tasks.contract import Targets
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Task

__all__ = ["FAMILY", "TokenClassification"]


class TokenClassification:
    """Logits as those of transformers' ``AutoModelForTokenClassification``; see `tangora.tasks.classification`."""

    name = "token-classification"
    base_settings = TokenBaseSettings
    task_settings = TokenSettings
    unused: tuple[str, ...] = ()

    def form(self, config: TokenSettings, /) -> AnswerForm:
        """Return tags."""
        return AnswerForm("tags", "tags")

    def load(self, config: TokenBaseSettings, /) -> ClassifierBase:
        """Load the backbone of the class, its tokenizer, and the checkpoint's head if it has one."""
        from tangora.tasks.classification import base  # deferred: torch

        return base.classifier_base(config, base.tokenizer_of(config, words=True))

    def targets(self, tables: Mapping[str, Table], config: TokenSettings, /) -> Targets:
        """Return the names of every row's tags."""
        return tag_targets(tables, config)

    def encode(
        self, table: Table, targets: Sequence[Any], config: TokenSettings, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return token ids of the words, and where words begin."""
        from tangora.tasks.classification import inputs  # deferred: torch

        return inputs.word_inputs(table, config, base)

    def decides(self, config: TokenSettings, base: Base, /) -> Mapping[str, Any]:
        """Return layers and values of the head, and the tag of words that are cut off."""
        from tangora.tasks.classification.base import decides, of_base  # deferred: torch

        outside = config.outside if config.lost == "outside" else None
        return {**decides(config, of_base(base)), "outside": outside}

    def finish(self, task: Task, config: TokenSettings, base: Base, /) -> HeadTask:
        """Return the task with its settings, and with the numbers of the tags as labels."""
        from tangora.tasks.classification import inputs, tasks  # deferred: torch

        splits = {name: inputs.with_tags(split, task.labels) for name, split in task.splits.items()}
        return tasks.finish(task, config, splits=splits)

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return how many words were cut off in each split."""
        from tangora.tasks.classification.inputs import lost_words  # deferred: torch

        return {"lost": {name: lost_words(split) for name, split in task.splits.items()}}

    def collate(self, base: Base, /) -> Collator:
        """Return a collator that pads ids and labels on the right."""
        from tangora.tasks.classification.inputs import HeadCollator  # deferred: torch

        return HeadCollator(base.processor.pad_token_id or 0)

    def readout(self, task: Task, base: Base, /) -> TagReadout:
        """Return a readout with the head's first values."""
        from tangora.tasks.classification.tasks import tag_readout  # deferred: torch

        return tag_readout(task, base)

    def followed(self, task: Task, /) -> None:
        """Return None: a word's logits are no function of features of its row."""

    def examples(self, table: Table, config: TokenSettings, /) -> Iterator[str]:
        """Iterate over the rows, with their words joined."""
        return (" ".join(words) for words in table.column(config.tokens))

    def auto_class(self, model: str, /) -> str:
        """Return the class that loads an encoder."""
        return "AutoModel"


FAMILY = TokenClassification()
