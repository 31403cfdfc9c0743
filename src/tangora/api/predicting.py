"""`predict`: a model's answers to rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tangora.api.adapters import AdapterLike, opened
from tangora.api.shown import Shown, shown
from tangora.errors import DataError
from tangora.evaluation.evaluator import answering
from tangora.evaluation.row_answers import RowAnswers, answered, check_batch_size
from tangora.modes.task_models import inputs_of
from tangora.support.validation import did_you_mean
from tangora.tasks.rows import table_of
from tangora.tasks.values import Split, Task

if TYPE_CHECKING:
    from tangora.tasks.base import Base

__all__ = ["RowAnswers", "predict"]


def predict(
    adapter: AdapterLike | None,
    base: Base,
    task: Task,
    rows: str | Sequence[Any] = "test",
    *,
    batch_size: int = 64,
    same_base: bool = False,
    progress: Shown = None,
) -> RowAnswers:
    """Answer rows with an adapter, or with the base alone.

    Args:
        adapter: an adapter of any mode, or its folder; None is the unchanged base.
        base: its weights are restored afterwards.
        task: defines the answers, and how rows become inputs.
        rows: a split of the task; or new rows: texts or images, or mappings of the columns that the task's settings
            name.
        batch_size: rows per forward pass; changes results by rounding at most.
        same_base: accept an adapter that was made for another base.
        progress: whether to show a bar; by default in a terminal or a notebook.

    Raises:
        ModelError: the adapter was made for another base, or does not fit it.
        ArgumentError: there are no rows.
        DataError: the task has no such split, or a row cannot be converted to an input.
        FileError: the folder does not contain a readable adapter.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> task = tangora.load_task("colors", base, files, labels=["red", "green", "blue"])
    >>> answers = tangora.predict("adapters/one", base, task, ["a red photo", "this is blue"])
    >>> answers[0] in task.labels, answers.probabilities.shape
    (True, torch.Size([2, 3]))
    """
    check_batch_size(batch_size)
    split = _split(task, rows) if isinstance(rows, str) else inputs_of(table_of(rows), task, base)
    with (
        answering(opened(adapter, base), base, same_base=same_base) as model_of,
        shown(progress) as bars,
    ):
        bars.begin("predict", len(split))
        answers = answered(model_of(task), task, split, batch_size, bars)
        bars.end()
    return answers


def _split(task: Task, name: str) -> Split:
    if name not in task.splits:
        fix = did_you_mean(name, list(task.splits)) + "; new rows are given as a list"
        raise DataError("the split is missing", got=name, where=f"task {task.name}", fix=fix)
    return task.splits[name]
