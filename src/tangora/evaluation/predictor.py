"""`predictor`: an artefact's answers to rows, from its folder alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from tangora.evaluation.row_answers import RowAnswers, answered, check_batch_size, joined
from tangora.modes.task_models import BaseLike, Opened, inputs_of, open_task, put_in
from tangora.progress import Progress, shown
from tangora.support.machine import Machine
from tangora.support.seams import FAMILIES
from tangora.support.shown import one_line, percent
from tangora.tasks.base import Base
from tangora.tasks.recorded import settings_of
from tangora.tasks.rows import table_of
from tangora.tasks.vision_language.backbone import VisionLanguageBase

if TYPE_CHECKING:
    from tangora.tasks.contract import Answers, Family
    from tangora.tasks.model import TaskModel
    from tangora.tasks.sources import Table

__all__ = ["Predictor", "predictor"]

_BLOCK = 512  # rows that are encoded at a time: as images of 224 pixels 300 MB


class Predictor:
    """Answers rows of one task; made by `predictor`, called with rows.

    Args:
        opened: an adapter, its base and the task.
        owned: whether the base is the predictor's own. If so, the adapter stays in it.

    Attributes:
        task: the task's name.
        labels: names of the classes; empty if there are none.

    >>> import tangora
    >>> predict = tangora.predictor("adapters/one")
    >>> predict
    Predictor('one', text-zero-shot, classes, 3 classes)
    """

    def __init__(self, opened: Opened, *, owned: bool) -> None:
        self.task, self.labels = opened.task.name, list(opened.task.labels)
        self._opened, self._saved = opened, dict[str, Tensor]()
        self._kept: tuple[TaskModel, contextlib.ExitStack] | None = put_in(opened) if owned else None

    def __repr__(self) -> str:
        task = self._opened.task
        classes = f"{len(self.labels)} classes" if self.labels else None
        return one_line("Predictor", repr(self.task), task.family, task.form.kind, classes)

    def __call__(
        self, rows: Sequence[Any], *, batch_size: int = 64, progress: Progress | bool | None = None
    ) -> RowAnswers:
        """Return the answers to rows.

        Args:
            rows: texts, or images (PIL, arrays, names of files); or mappings of the columns that the task reads.
            batch_size: rows per forward pass; changes results by rounding at most.
            progress: whether to show it; by default in a terminal or a notebook.

        Raises:
            ArgumentError: there are no rows.
            DataError: a row cannot be converted to an input; the message names it.
        """
        table = table_of(rows)
        with shown(progress) as listener:
            return joined(list(self.blocks(table, batch_size=batch_size, progress=listener)))

    def blocks(self, table: Table, *, batch_size: int = 64, progress: Progress | None = None) -> Iterator[RowAnswers]:
        """Yield the answers to a table's rows a block at a time: the inputs of all rows are never in memory at once.

        Args:
            table: rows of the task's inputs, from `tangora.tasks.recorded.read_inputs`.
            batch_size: rows per forward pass.
            progress: is given the rows that are done.

        Raises:
            ArgumentError: ``batch_size`` is smaller than 1.
            DataError: a row cannot be converted to an input; the message names it.
        """
        check_batch_size(batch_size)
        listener, opened = progress if progress is not None else Progress(), self._opened
        listener.begin("predict", len(table))
        cut, longest, unended, empty = 0, None, 0, 0
        for start in range(0, len(table), _BLOCK):
            block = table.select(range(start, min(start + _BLOCK, len(table))))
            split = inputs_of(block, opened.task, opened.base)
            cut, longest = cut + len(split.cut), split.longest
            with self._model() as model:
                before = getattr(model.readout, "unended", 0)
                answers = answered(model, opened.task, split, batch_size, listener)
                unended += getattr(model.readout, "unended", 0) - before
            empty += sum(isinstance(answer, str) and not answer for answer in answers)
            yield answers
        listener.end()
        if cut:
            listener.note(f"{_share(cut, len(table), 'row')} cut at max_length {longest}")
        if unended:
            fix = "train until they end, or with a larger max_new_tokens"
            listener.note(f"{_share(unended, len(table), 'answer')} cut at max_new_tokens, before an end: {fix}")
        if empty:
            listener.note(f"{_share(empty, len(table), 'answer')} empty: the model ends them at once")

    @property
    def kind(self) -> Answers:
        """The kind of the answers."""
        return self._opened.task.form.kind

    @property
    def reads(self) -> Literal["texts", "images"] | None:
        """What the base's processor converts; None if that is not known, or if the base reads both."""
        from transformers import ImageProcessingMixin, PreTrainedTokenizerBase  # deferred: takes a second to import

        processor = self._opened.base.processor
        if isinstance(self._opened.base, VisionLanguageBase):
            return None
        if isinstance(processor, PreTrainedTokenizerBase):
            return "texts"
        return "images" if isinstance(processor, ImageProcessingMixin) else None

    def examples(self, table: Table) -> list[str]:
        """Return a table's rows in a form for people: texts, or names of files, empty for images without one."""
        task = self._opened.task
        family: Family[Any, Any] = FAMILIES.get(task.family)
        config: Any = settings_of(task.name, task.record["task"], family)
        if isinstance(next(family.examples(table.select([0]), config)), str):
            return [str(example) for example in family.examples(table, config)]
        return [value if isinstance(value, str) else "" for value in table.column(config.image)]

    @contextlib.contextmanager
    def _model(self) -> Iterator[TaskModel]:
        """Provide the model with the adapter in it; a base that is not the predictor's own is restored afterwards."""
        if self._kept is not None:
            yield self._kept[0]
            return
        with self._opened.answering(self._saved) as model_of:
            yield model_of(self._opened.task)


def _share(count: int, of: int, what: str) -> str:
    """Return the subject and the verb of a sentence about some of the rows."""
    return f"{count:,} of {of:,} {what}s ({percent(count, of)}) {'is' if count == 1 else 'are'}"


def predictor(
    folder: str | os.PathLike[str],
    task: str | None = None,
    *,
    base: BaseLike | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    same_base: bool = False,
) -> Predictor:
    """Return a function from rows to answers, from an artefact's own files: loaded once, called any number of times.

    It answers in the form in which the artefact was trained and scored: with the updates in the weights, or in the
    expansion of the whole network for tangent adapters, with the task's own head. Labels, templates, pooling, maximum
    length and head are those that the folder records. Choose it to use an adapter; `tangora.predict` answers with a
    base and a task that are loaded already, and `tangora.load_model` returns the network itself.

    Args:
        folder: of an adapter of any mode, trained or fused; or of a checkpoint that adapters were merged into; or its
            name on the Hub.
        task: the task; may be left out if the folder has the record of only one.
        base: the adapter's base: by default the one that the folder names. A folder or Hub id is loaded, and belongs
            to the predictor: the adapter stays in it. A base from `tangora.load_base` stays the caller's: its weights
            are as before after each call. For a merged checkpoint of a family that embeds class names with the
            backbone (``text-zero-shot``), the unchanged base, which embeds them.
        device, dtype: for a base that is loaded here, as of `tangora.load_base`.
        trust_remote_code: run code from the base model's repository.
        same_base: accept a base with other weights than the recorded ones.

    Raises:
        ArgumentError: no such task; or several and none is named; or the given base was loaded with other settings.
        FileError: the folder holds no readable adapter or checkpoint.
        ModelError: the base cannot be loaded, or is another one than the adapter's.

    >>> import tangora
    >>> predict = tangora.predictor("adapters/one")
    >>> answers = predict(["a red photo", "this is blue"])
    >>> answers[0] in predict.labels, answers.probabilities.shape
    (True, torch.Size([2, 3]))
    """
    machine = Machine.resolve(device, dtype, threads=None)
    opened = open_task(folder, task, base, machine, trust=trust_remote_code, same_base=same_base)
    return Predictor(opened, owned=not isinstance(base, Base))
