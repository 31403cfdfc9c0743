"""Tasks and splits as values: inputs and targets, independent of files and models."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tangora.support.files import digest
from tangora.support.shown import html_table, one_line
from tangora.tasks.contract import AnswerForm

__all__ = ["Batch", "Collate", "Encoded", "Split", "SplitRows", "Task", "evaluating", "fingerprint_of", "only"]

CLASSES = AnswerForm("classes", "classes")

Batch: TypeAlias = dict[str, Tensor]
Collate: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], Batch]
"""Collates entries of a split into a padded batch with ``labels``."""


class Encoded(dict[str, "list[Tensor] | Tensor"]):
    """Inputs of rows by their names, as `tangora.tasks.contract.Family.encode` returns them, and which rows were cut.

    Args:
        inputs: one entry per row; see `Split`.
        cut: numbers of the rows that lost tokens.
        longest: the number of tokens that rows were cut to; None if none can be cut.
        labelled: whether the targets are those of the rows; if not, they are placeholders, and so are ``labels``.
    """

    def __init__(
        self, inputs: Mapping[str, list[Tensor] | Tensor], cut: Iterable[int] = (), longest: int | None = None
    ) -> None:
        super().__init__(inputs)
        self.cut, self.longest = frozenset(cut), longest


class SplitRows(Dataset[dict[str, Any]]):
    """A split as a torch data set: one dictionary of unpadded inputs and ``labels`` per row."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._split)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return the inputs and labels of one row."""
        item: dict[str, Any] = {name: values[row] for name, values in self._split.inputs.items()}
        if "labels" not in item:
            item["labels"] = self._split.targets[row]
        return item


@dataclass(frozen=True)
class Split:
    """Preprocessed rows.

    Attributes:
        inputs: one entry per row, by the backbone's names for them: ``input_ids`` as unpadded 1-D int64 tensors, or
            ``pixel_values`` of shape [n, 3, height, width]; and ``labels``, if they are not the targets.
        targets: the targets of metrics, by the kind of answers: see `tangora.tasks.contract.Answers`.
        fingerprint: sha-256 of inputs and targets.
        cut: numbers of the rows that lost tokens.
        longest: the number of tokens that rows were cut to; None if none can be cut.
    """

    inputs: Mapping[str, list[Tensor] | Tensor]
    targets: list[Any]
    fingerprint: str = ""
    cut: frozenset[int] = frozenset()
    longest: int | None = None
    labelled: bool = True
    _batches: dict[int, list[tuple[list[int], Batch]]] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        return one_line("Split", f"{len(self)} rows", f"inputs {' '.join(self.inputs)}")

    def __post_init__(self) -> None:
        """Compute the fingerprint unless it is given."""
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", fingerprint_of([self.inputs, self.targets]))

    @classmethod
    def of(cls, inputs: Mapping[str, list[Tensor] | Tensor], targets: list[Any]) -> Split:
        """Return rows as a family encoded them."""
        if isinstance(inputs, Encoded):
            return cls(inputs, targets, cut=inputs.cut, longest=inputs.longest)
        return cls(inputs, targets)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.targets)

    def select(self, rows: Sequence[int]) -> Split:
        """Return the rows with these numbers, in this order."""
        inputs = {
            name: [values[i] for i in rows] if isinstance(values, list) else values[list(rows)]
            for name, values in self.inputs.items()
        }
        cut = frozenset(new for new, old in enumerate(rows) if old in self.cut)
        targets = [self.targets[i] for i in rows]
        return Split(inputs, targets, cut=cut, longest=self.longest, labelled=self.labelled)

    def dataset(self) -> SplitRows:
        """Return the rows as a torch data set, for a `DataLoader` or a `Trainer`."""
        return SplitRows(self)

    def batches(
        self,
        size: int,
        collator: Collate,
        only: Collection[int] | None = None,
    ) -> list[tuple[list[int], Batch]]:
        """Return padded batches with their row numbers, rows of similar length together; made once per ``size``.

        Every candidate of a fusion grid is a pass over the same rows, so they are padded only once. With ``only``, the
        batches contain just these rows.
        """
        if only is not None:
            return self._padded(only, size, collator)
        if size not in self._batches:
            self._batches[size] = self._padded(range(len(self)), size, collator)
        return self._batches[size]

    def _padded(self, chosen: Iterable[int], size: int, collator: Collate) -> list[tuple[list[int], Batch]]:
        rows = self.dataset()
        order = sorted(chosen, key=self._length)
        picks = [order[i : i + size] for i in range(0, len(order), size)]
        return [(pick, collator([rows[i] for i in pick])) for pick in picks]

    def _length(self, row: int) -> int:
        return len(self.inputs["input_ids"][row]) if "input_ids" in self.inputs else 0


@dataclass(frozen=True)
class Task:
    """One task, read and preprocessed. A family may add what its readout needs, in a derived class.

    Attributes:
        name: unique in a recipe.
        family: the base's family.
        metric: the primary one of `tangora.tasks.METRICS`; coefficients and checkpoints are chosen by it.
        labels: class names in label order; empty for regression and free text.
        splits: ``train``, ``validation`` and ``test``: three disjoint sets of rows.
        fingerprint: sha-256 of everything above, and of how rows are preprocessed and answered.
        more_metrics: further metrics that predictions are scored by, but nothing is chosen by.
        form: the form of the answers.
        record: what prediction needs besides the base, as JSON: see `tangora.adapters.heads.HeadRecord`.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> tangora.load_task("colors", base, files, labels=["red", "green", "blue"])
    Task('colors', text-zero-shot, accuracy, 3 classes, rows: train 43 validation 5 test 24)
    """

    name: str
    family: str
    metric: str
    labels: list[str]
    splits: Mapping[str, Split]
    fingerprint: str = ""
    more_metrics: tuple[str, ...] = ()
    form: AnswerForm = CLASSES
    record: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        classes = f"{len(self.labels)} classes" if self.labels else None
        rows = " ".join(f"{name} {len(split)}" for name, split in self.splits.items())
        return one_line("Task", repr(self.name), self.family, " ".join(self.metrics), classes, f"rows: {rows}")

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        title = f"Task {self.name}: {self.family}, {' '.join(self.metrics)}"
        if self.labels:
            title += f"; classes: {', '.join(self.labels[:12])}{', …' if len(self.labels) > 12 else ''}"
        return html_table(title, ["split", "rows"], [(name, len(split)) for name, split in self.splits.items()])

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics, the primary one first."""
        return (self.metric, *self.more_metrics)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for the block, and restore the mode of each of its modules.

    ``model.train()`` would not do: a frozen backbone in evaluation mode may be inside a module in training mode, and
    its dropout would be switched on.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def only(task: Task, split: str, rows: Sequence[int]) -> Task:
    """Return the task with only some rows of one split."""
    part = task.splits[split].select(rows)
    return replace(task, splits={split: part}, fingerprint=digest([task.fingerprint, split, part.fingerprint]))


def fingerprint_of(value: Any) -> str:
    """Return the sha-256 (hex) of nested mappings, sequences, tensors, arrays (bytes and shapes) and plain values."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        state.update(f"tensor {value.dtype} {tuple(value.shape)}\0".encode())
        state.update(value.view(-1).view(torch.uint8).numpy() if value.numel() else b"")
    elif isinstance(value, np.ndarray):
        state.update(f"array {value.dtype} {value.shape}\0".encode())
        state.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Mapping):
        state.update(f"mapping {len(value)}\0".encode())
        for key in sorted(value):
            _feed(state, key)
            _feed(state, value[key])
    elif isinstance(value, (list, tuple)):
        state.update(f"sequence {len(value)}\0".encode())
        for item in value:
            _feed(state, item)
    else:
        text = repr(value)
        state.update(f"{type(value).__name__} {len(text)} {text}\0".encode())
