"""Uncertainty sampling (arXiv:2009.09139): train on the candidates that the model is least certain about.

Candidates ─ CandidatesCollator ─▶ b rows of every task ─ Choosing: entropies, no gradients ─▶ b rows ─ Mixture ─▶ loss

What is chosen depends on the weights and the batch alone. So there is no state to keep, a training that is resumed
chooses the same rows, and every joint mode can train this way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tangora.errors import ModelError
from tangora.tasks.batches import IGNORED
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from tangora.tasks.contract import AnswerForm
    from tangora.tasks.model import TaskModel
    from tangora.tasks.values import Batch, Task

__all__ = ["Candidates", "CandidatesCollator", "Choosing", "entropies", "kept", "refuse_packed", "scores"]

_EPSILON = 1e-5
_AT_ONCE = 4  # rows whose logits over a whole vocabulary are held


class Candidates(Dataset[Any]):
    """A row of every task at each position, with the number of the batch that they belong to.

    Args:
        rows: of the tasks in turn.
        tasks: how many there are.
        batch: positions of a batch.
    """

    def __init__(self, rows: Dataset[Any], tasks: int, batch: int) -> None:
        self.rows, self.tasks, self.batch = rows, tasks, batch

    def __len__(self) -> int:
        """Return the number of rows that are trained on."""
        return len(cast(Any, self.rows)) // self.tasks

    def __getitem__(self, position: int) -> Any:
        """Return ``rows``, one of each task, and ``number``, that of the batch."""
        first = position * self.tasks
        return {"rows": [self.rows[first + task] for task in range(self.tasks)], "number": position // self.batch}


@dataclass(frozen=True)
class CandidatesCollator:
    """Collates entries of `Candidates`; picklable, for data loader processes.

    Args:
        parts: collates rows of several tasks, such as a `tangora.modes.mixture.MixedCollator`.
    """

    parts: Callable[[Sequence[Mapping[str, Any]]], dict[str, list[Batch]]]

    def __call__(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return ``parts``, a batch for each task, and ``number``."""
        rows = [row for entry in entries for row in entry["rows"]]
        return {**self.parts(rows), "number": torch.tensor(entries[0]["number"])}


class Choosing(nn.Module):
    """A mixture of tasks that trains on the least certain candidates; see `scores`.

    Args:
        mixture: has ``models``, one for each task, and maps parts of a batch to a loss.
        forms: of the tasks' answers.
        released: keep dropout on while rows are scored, and let rows without an entropy borrow scores, as in the
            released code; by default, neither.
    """

    def __init__(self, mixture: nn.Module, forms: Sequence[AnswerForm], released: bool = False) -> None:
        super().__init__()
        self.mixture, self._forms, self._released = mixture, tuple(forms), released

    def forward(self, parts: Sequence[Batch], number: Tensor) -> dict[str, Tensor]:
        """Return the ``loss`` of the chosen rows.

        Args:
            parts: a batch of the same number of candidates for each task.
            number: of the batch, from 0 on.
        """
        measured = [self._entropies(part) for part in parts]
        chosen = kept(measured, int(number), len(parts[0]["task"]), self._released)
        least = [_rows_of(part, rows) for part, rows in zip(parts, chosen, strict=True) if bool(rows.any())]
        loss: dict[str, Tensor] = self.mixture(parts=least)
        return loss

    def _entropies(self, part: Batch) -> Float[Tensor, " rows"] | None:
        index = int(part["task"][0])
        form = self._forms[index]
        if form.logits_over is None:
            return None
        model = cast("TaskModel", cast(Any, self.mixture).models[index])
        with torch.no_grad(), contextlib.nullcontext() if self._released else evaluating(model):
            return _measured(model, part, form)


def _measured(model: TaskModel, part: Batch, form: AnswerForm) -> Float[Tensor, " rows"]:
    rows = len(part["task"])
    step = _AT_ONCE if form.logits_over == "tokens" else rows
    found = []
    for start in range(0, rows, step):
        inputs = {n: v[start : start + step] for n, v in part.items() if n != "task"}
        labels = inputs.pop("labels")
        found.append(entropies(model.logits(inputs, labels), labels, form))
    return torch.cat(found)


def entropies(logits: Tensor, labels: Tensor, form: AnswerForm) -> Float[Tensor, " rows"]:
    """Return ``H / (H_max + 1e-5)`` of each row, in [0, 1): the entropy of its prediction, by that of a uniform one.

    Of several predictions in a row (of words, of target tokens, of independent labels) it is the mean.

    Args:
        logits: [rows, classes], [rows, tokens, classes] or [rows, labels].
        labels: of the batch; of words and tokens they say which positions count.
        form: says what the logits are distributions over.

    >>> from tangora.tasks.contract import AnswerForm
    >>> entropies(torch.zeros(1, 4), torch.zeros(1), AnswerForm("classes", "classes"))
    tensor([1.0000])
    """
    if form.logits_over == "labels":
        p = logits.sigmoid()
        each: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
        return (each / (math.log(2) + _EPSILON)).mean(-1)
    each = torch.special.entr(logits.softmax(-1)).sum(-1) / (math.log(logits.shape[-1]) + _EPSILON)
    if form.logits_over == "classes":
        return each
    counted = labels != IGNORED
    return (each * counted).sum(1) / counted.sum(1).clamp_min(1)


def scores(measured: Sequence[Float[Tensor, " rows"]]) -> list[Float[Tensor, " rows"]]:
    """Return ``H/H_max · mean_t(H/H_max) / max_u mean_u(H/H_max)`` of each row, u over the tasks.

    So a row counts by the model's uncertainty about it, and about its task (arXiv:2009.09139, uncertainty sampling).

    Args:
        measured: normalized entropies of each task's candidates; see `entropies`.

    >>> scores([torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.5])])
    [tensor([1.0000, 0.5000]), tensor([0.1250, 0.2500])]
    """
    means = [values.mean() for values in measured]
    largest = max(means, default=torch.tensor(1.0)).clamp_min(torch.finfo(torch.float32).tiny)  # all may be certain
    return [values * (mean / largest) for values, mean in zip(measured, means, strict=True)]


def kept(
    measured: Sequence[Float[Tensor, " rows"] | None], number: int, count: int, released: bool = False
) -> list[Bool[Tensor, " rows"]]:
    """Return which candidates of each task to train on: ``count`` in all, those of the largest scores.

    A task without entropies, such as a regression, keeps a fixed share: in batch n of T tasks, task t keeps
    ``⌊((n+1)·count + t) / T⌋ − ⌊(n·count + t) / T⌋`` rows. Those are ``count / T`` rows on average, and ``count`` rows
    in every batch if no task has entropies. The others share what is left.

    Args:
        measured: normalized entropies of each task's ``count`` candidates; None if the task has none.
        number: of the batch, from 0 on.
        count: candidates of each task, and rows to keep.
        released: let a task without entropies borrow the scores of the first one that has some, position by position.
    """
    total, shares = len(measured), [0] * len(measured)
    known = iter(scores([values for values in measured if values is not None]))
    scored = [None if values is None else next(known) for values in measured]
    lender = next((values for values in scored if values is not None), None)
    if released and lender is not None:
        scored = [lender if values is None else values for values in scored]
    for task, values in enumerate(scored):
        if values is None:
            shares[task] = ((number + 1) * count + task) // total - (number * count + task) // total
    chosen = [torch.arange(count) < share for share in shares]
    ranked = [task for task, values in enumerate(scored) if values is not None]
    if ranked:
        listed = torch.cat([values.float().cpu() for values in scored if values is not None])
        best = listed.sort(descending=True, stable=True).indices[: count - sum(shares)]  # of equal scores, the first
        mask = torch.zeros(len(listed), dtype=torch.bool).index_fill(0, best, True)
        for task, part in zip(ranked, mask.split(count), strict=True):
            chosen[task] = part
    return chosen


def _rows_of(part: Batch, rows: Bool[Tensor, " rows"]) -> Batch:
    return {name: value[rows.to(value.device)] for name, value in part.items()}


def refuse_packed(tasks: Sequence[Task], collators: Sequence[Any]) -> None:
    """Refuse tasks whose batches are one long sequence: no row can be taken out of it.

    Args:
        tasks: those that are trained on.
        collators: of their families.

    Raises:
        ModelError: names the task.
    """
    for task, collator in zip(tasks, collators, strict=True):
        if getattr(collator, "packing", False):
            fix = "set base.packing: false, or choose another sampler"
            raise ModelError("rows of a packed batch cannot be chosen", got=task.name, where="sampling.by", fix=fix)
