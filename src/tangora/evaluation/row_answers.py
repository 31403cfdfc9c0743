"""Answers of a model to rows, with the probabilities of their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.support.shown import html_table, one_line
from tangora.tasks.values import Split, Task, evaluating

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.progress import Progress
    from tangora.tasks.model import TaskModel

__all__ = ["RowAnswers", "answered", "check_batch_size", "joined"]

_SHOWN = 20  # rows in a notebook
_LIKELY: dict[tuple[str, str | None], Callable[[Tensor], Tensor]] = {
    ("classes", "classes"): lambda logits: logits.softmax(-1),
    ("labels", "labels"): torch.sigmoid,
}
"""What answers are, and what logits are over -> probabilities."""


@dataclass(frozen=True, eq=False)
class RowAnswers(Sequence[Any]):
    """An answer for each row, in the order of the rows.

    Attributes:
        task: the name of the rows' task.
        answers: names of classes, texts, numbers, or lists (of the names of labels, of a tag for each word, ...).
        labels: names of the classes, in the order of the columns of ``probabilities``; empty if there are none.
        probabilities: of the classes, or of labels of which a row can have any, float32; None if answers are neither.
    """

    task: str
    answers: list[Any]
    labels: list[str]
    probabilities: Float[Tensor, "rows classes"] | None = None

    @property
    def probability(self) -> Float[Tensor, " rows"] | None:
        """The probability of each answer; None if answers are not classes."""
        if self.probabilities is None or any(isinstance(answer, list) for answer in self.answers):
            return None
        numbers = {name: number for number, name in enumerate(self.labels)}
        chosen = torch.tensor([numbers[answer] for answer in self.answers], dtype=torch.int64)
        return self.probabilities.gather(1, chosen[:, None])[:, 0]

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
        own = self.probability
        for row, answer in enumerate(self.answers[:_SHOWN]):
            rows.append((row, answer, *(() if own is None else (f"{float(own[row]):.3f}",))))
        return html_table(f"{self.task}: {len(self)} rows", columns, rows)


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch without rows.

    Raises:
        ArgumentError: it is smaller than 1.
    """
    if batch_size < 1:
        raise ArgumentError("batch_size must be at least 1", got=batch_size, where="predict.batch_size")


def answered(model: TaskModel, task: Task, split: Split, size: int, progress: Progress) -> RowAnswers:
    """Return the answer to each row of a split, and the probabilities of classes or labels if these are answered.

    Args:
        model: of the task.
        task: its class names are the answers.
        split: encoded rows.
        size: rows per forward pass.
        progress: is advanced by each batch.
    """
    device = next(model.parameters()).device
    likely = _LIKELY.get((model.form.kind, model.form.logits_over))
    values: list[Any] = [None] * len(split)
    probabilities = torch.zeros(len(split), model.readout.width) if likely is not None else None
    answers_of = getattr(model.readout, "answers_of", None)
    with evaluating(model), torch.no_grad():  # inference mode would disable forward-mode tangents
        for rows, batch in split.batches(size, model.collator):
            placed = {name: value.to(device) for name, value in batch.items()}
            inputs = {name: value for name, value in placed.items() if name != "labels"}
            predicted: Sequence[Any] = []
            if likely is not None and probabilities is not None:
                logits = model.logits(inputs, placed["labels"]).float()
                probabilities[rows] = likely(logits).cpu()
                predicted = answers_of(logits) if answers_of is not None else []
            for row, value in zip(rows, predicted or model.predict_batch(placed)[0], strict=True):
                values[row] = value
            progress.advance(len(rows))
    return RowAnswers(task.name, [_named(value, task) for value in values], list(task.labels), probabilities)


def joined(parts: Sequence[RowAnswers]) -> RowAnswers:
    """Return the answers to several blocks of rows of one task."""
    first, answers = parts[0], [answer for part in parts for answer in part]
    found = [part.probabilities for part in parts if part.probabilities is not None]
    return RowAnswers(first.task, answers, first.labels, torch.cat(found) if found else None)


def _named(value: Any, task: Task) -> Any:
    """Return an answer with names in place of class numbers."""
    if task.form.kind == "classes":
        return task.labels[value]
    return [task.labels[number] for number in value] if task.form.kind == "labels" else value
