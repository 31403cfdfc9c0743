"""`predict`: a model's answers to rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from tangora.api.adapters import AdapterLike, opened
from tangora.api.shown import Shown, shown
from tangora.errors import ArgumentError, DataError
from tangora.evaluation.evaluator import answering
from tangora.support.seams import FAMILIES
from tangora.support.shown import html_table, one_line
from tangora.support.validation import did_you_mean
from tangora.tasks.readouts import ClassReadout
from tangora.tasks.recorded import encoded, settings_of
from tangora.tasks.sources import Table
from tangora.tasks.templates import fields
from tangora.tasks.values import Split, Task, evaluating

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.progress import Progress
    from tangora.tasks.base import Base
    from tangora.tasks.contract import Family
    from tangora.tasks.model import TaskModel

__all__ = ["RowAnswers", "predict"]

_SHOWN = 20  # rows in a notebook


@dataclass(frozen=True, eq=False)
class RowAnswers(Sequence[Any]):
    """An answer for each row, in the order of the rows.

    Attributes:
        task: the name of the rows' task.
        answers: names of classes, texts or numbers.
        labels: names of the classes, in the order of the columns of ``probabilities``; empty if there are none.
        probabilities: of the classes, float32; None if answers are not classes.
    """

    task: str
    answers: list[Any]
    labels: list[str]
    probabilities: Float[Tensor, "rows classes"] | None = None

    @overload
    def __getitem__(self, row: int) -> Any: ...

    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...

    def __getitem__(self, row: int | slice) -> Any:
        return self.answers[row]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.answers)

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self.answers[:3])) + (", …" if len(self) > 3 else "")
        classes = f"probabilities of {len(self.labels)} classes" if self.probabilities is not None else None
        return one_line("RowAnswers", repr(self.task), f"{len(self)} rows", classes, first)

    def _repr_html_(self) -> str:
        """Return a table of the first rows for notebooks."""
        columns = ["row", "answer", "probability"][: 2 if self.probabilities is None else 3]
        rows: list[tuple[object, ...]] = []
        for row, answer in enumerate(self.answers[:_SHOWN]):
            most = () if self.probabilities is None else (f"{float(self.probabilities[row].max()):.3f}",)
            rows.append((row, answer, *most))
        return html_table(f"{self.task}: {len(self)} rows", columns, rows)


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
    if batch_size < 1:
        raise ArgumentError("batch_size must be at least 1", got=batch_size, where="predict.batch_size")
    family: Family[Any, Any] = FAMILIES.get(task.family)
    split = _split(task, rows) if isinstance(rows, str) else _encoded(rows, task, base, family)
    with (
        answering(opened(adapter), base, same_base=same_base) as model_of,
        shown(progress) as bars,
    ):
        values, probabilities = _answers(model_of(task), split, batch_size, family, bars)
    answers = [task.labels[value] for value in values] if task.form.kind == "classes" else values
    return RowAnswers(task.name, answers, list(task.labels), probabilities)


def _split(task: Task, name: str) -> Split:
    if name not in task.splits:
        fix = did_you_mean(name, list(task.splits)) + "; new rows are given as a list"
        raise DataError("the split is missing", got=name, where=f"task {task.name}", fix=fix)
    return task.splits[name]


def _encoded(rows: Sequence[Any], task: Task, base: Base, family: Family[Any, Any]) -> Split:
    """Return new rows as inputs, with placeholders as targets."""
    if not len(rows):
        raise ArgumentError("no rows", got=0, where=f"task {task.name}", fix="give at least one")
    config = settings_of(task.name, task.record["task"], family)
    return encoded(Table(_columns(rows, config), "rows", {}), config, base, family)


def _columns(rows: Sequence[Any], config: Any) -> dict[str, list[Any]]:
    """Return the columns of new rows. A bare text or image goes into every column that can contain it."""
    if all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}
    named = fields(config.prompt, "prompt") if getattr(config, "prompt", None) else []
    names = dict.fromkeys([getattr(config, "text", "text"), getattr(config, "image", "image")])
    if len(set(named)) > 1:
        fix = f"give each row as a mapping of {', '.join(named)}"
        raise DataError("the task's prompt is made of several columns", where="predict.rows", fix=fix)
    return {name: list(rows) for name in (*names, *named)}


def _answers(
    model: TaskModel, split: Split, size: int, family: Family[Any, Any], bars: Progress
) -> tuple[list[Any], Tensor | None]:
    """Return the answer to each row, and the probabilities of its classes if logits are over classes."""
    device = next(model.parameters()).device
    classes = model.form.logits_over == "classes"
    values: list[Any] = [None] * len(split)
    probabilities = torch.zeros(len(split), model.readout.width) if classes else None
    batches = split.batches(size, model.collator)
    bars.begin("predict", len(split))
    with evaluating(model), torch.no_grad():  # inference mode would disable forward-mode tangents
        for rows, batch in batches:
            placed = {name: value.to(device) for name, value in batch.items()}
            inputs = {name: value for name, value in placed.items() if name != "labels"}
            predicted: Sequence[Any] = []
            if probabilities is not None:
                logits = model.logits(inputs, placed["labels"]).float()
                probabilities[rows] = logits.softmax(-1).cpu()
                predicted = logits.argmax(-1).tolist() if isinstance(model.readout, ClassReadout) else []
            for row, value in zip(rows, predicted or model.predict_batch(placed)[0], strict=True):
                values[row] = value
            bars.advance(len(rows))
    bars.end()
    return values, probabilities
