"""Logits of fused models by forward passes: weights as a differentiable function of the coefficients."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import Slot, find_slots
from tangora.coefficients.linear import shares
from tangora.coefficients.logits import Answers
from tangora.errors import ArgumentError, DataError, FusionError
from tangora.storage.held import values_of
from tangora.tasks.lines import lines_of
from tangora.tasks.model import TaskModel, collate, make_readout
from tangora.tasks.values import evaluating
from tangora.updates.task_vector import Update

if TYPE_CHECKING:
    from tangora.tasks import Base, Task
    from tangora.tasks.contract import LogitsOver, Readout
    from tangora.tasks.values import Batch

__all__ = ["ForwardLogits"]


class ForwardLogits:
    """The logits of fused LoRA, L-LoRA and full adapters, differentiable in the coefficients.

    The weights are ``W + s B0 A0 + sum_t c_ts (dW_ts)``, formed from the factors, as an evaluation forms them.
    If readouts declare equal features (``features_key``), rows of their tasks share a forward pass, sorted by length;
    only the logits are computed for each task. A forward and backward pass costs about three forward passes, for any
    number of tasks.

    Args:
        base: the adapters' base; untouched.
        tasks: their rows are used.
        split: of the tasks.
        adapters: name -> adapter; the coefficients multiply their task vectors.
        per_site: one coefficient per task vector and site; else one per task vector.
        rows: task -> rows of the split; by default all.
        batch_size: rows per forward pass.

    Raises:
        ArgumentError: there are no adapters.
        FusionError: an adapter has layers that were saved whole.
        DataError: a split or its rows are missing.
        ModelError: an adapter does not fit the base.
    """

    def __init__(
        self,
        base: Base,
        tasks: Sequence[Task],
        split: str,
        adapters: Mapping[str, Adapter],
        *,
        per_site: bool = False,
        rows: Mapping[str, Sequence[int]] | None = None,
        batch_size: int = 64,
    ) -> None:
        if not adapters:
            raise ArgumentError("nothing to find coefficients for", got=0, where="adapters", fix="give at least one")
        self._tasks = {task.name: task for task in tasks}
        self._split, self._batch_size = split, batch_size
        self._chosen = {t.name: _rows_of(t, split, (rows or {}).get(t.name)) for t in tasks}
        self._readouts = _readouts(tasks, base, adapters)
        self._backbone, self._collate = _Backbone(base.backbone), collate(tasks[0], base)
        self._machine = base.machine
        self._weights = _Weights(base.backbone, list(adapters.values()))
        self.tasks, self.vectors = tuple(self._tasks), tuple(adapters)
        self.sites = self._weights.sites if per_site else ()
        self.whole = False
        self.shape: tuple[int, ...] = (len(adapters), *((len(self.sites),) if per_site else ()))
        self.rows: Mapping[str, int] = {name: len(chosen) for name, chosen in self._chosen.items()}

    def __call__(
        self, coefficients: Float[Tensor, " vectors *sites"], picks: Mapping[str, Sequence[int]]
    ) -> Iterator[dict[str, Answers]]:
        """Yield one part per forward pass; each has its own graph, so only one part's activations are in memory."""
        data = {name: self._tasks[name].splits[self._split].dataset() for name in picks}
        counts = {name: len(picked) for name, picked in picks.items()}
        alike: dict[Hashable, list[tuple[str, Any]]] = {}
        for task, picked in picks.items():
            rows = [(task, data[task][self._chosen[task][i]]) for i in picked]
            key = self._readouts[task].features_key, self._tasks[task].form.logits_over  # labels of one form per batch
            alike.setdefault(key, []).extend(rows)
        with evaluating(self._backbone):
            for listed in alike.values():
                listed.sort(key=lambda line: len(line[1].get("input_ids", ())))
                for start in range(0, len(listed), self._batch_size):
                    part = listed[start : start + self._batch_size]
                    yield self._answers(coefficients, [t for t, _ in part], self._collate([r for _, r in part]), counts)

    def _answers(
        self, coefficients: Tensor, names: Sequence[str], batch: Batch, counts: Mapping[str, int]
    ) -> dict[str, Answers]:
        device = next(self._backbone.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        weights = {f"backbone.{n}": w for n, w in self._weights(coefficients).items()}
        with self._machine.autocast():
            features = functional_call(self._backbone, weights, (self._readouts[names[0]], batch)).float()
        answers: dict[str, Answers] = {}
        for name in dict.fromkeys(names):
            which = torch.tensor([i for i, task in enumerate(names) if task == name], device=device)
            logits, over = self._readouts[name].logits(features[which]), self._tasks[name].form.logits_over
            assert over is not None  # refused when the readouts were made
            answers[name] = _lines(over, logits, batch["labels"][which], len(which) / counts[name])
        return answers


def _readouts(tasks: Sequence[Task], base: Base, adapters: Mapping[str, Adapter]) -> dict[str, Readout]:
    """Return task -> readout, with the head of the adapter that has one, on the backbone's device."""
    for task in tasks:
        if task.form.logits_over is None:
            fix = "choose coefficients by a grid"
            raise FusionError("no search by gradients: logits are not a distribution", got=task.family, fix=fix)
    made = {t.name: TaskModel(base.backbone, t, base, make_readout(t, base, *adapters.values())) for t in tasks}
    for model in made.values():
        cast(nn.Module, model.readout).requires_grad_(False)
    return {name: model.readout for name, model in made.items()}


class _Backbone(nn.Module):
    """The features of a readout as one module, for `functional_call`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, readout: Readout, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return readout.features(self.backbone, inputs, batch["labels"])


@dataclass(frozen=True)
class _Site:
    """The slot of one site in the model, and the updates of the vectors that have one."""

    index: int
    slot: Slot
    updates: Sequence[tuple[int, Update]]

    def added_to(self, weight: Tensor, coefficients: Float[Tensor, " vectors"]) -> Tensor:
        """Return a weight with ``sum_t c_t dW_t`` added at the site's slot; differentiable in the coefficients."""
        part = self.slot.view(weight)
        delta = _sum(self.updates, coefficients.to(weight)).reshape(part.shape)
        delta = delta.T if self.slot.transposed else delta
        if self.slot.expert is None:
            return weight + delta
        return weight.index_add(0, torch.tensor([self.slot.expert], device=weight.device), delta[None])


class _Weights:
    """The base's adapted weights as a function of the coefficients."""

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter]) -> None:
        first = adapters[0]
        if any(adapter.whole for adapter in adapters):
            what, fix = "no coefficient can be learned for layers that were saved whole", "fuse with given weights"
            raise FusionError(what, where="adapters", fix=fix)
        slots = {site: slot for adapter in adapters for site, slot in find_slots(model, adapter).items()}
        self.sites = tuple(sorted(slots))
        vectors = [a.task_vector for a in adapters]
        self._sites = [
            _Site(i, slots[site], [(t, vector[site]) for t, vector in enumerate(vectors) if site in vector])
            for i, site in enumerate(self.sites)
        ]
        self._start = {site.slot.name: values_of(model, site.slot.name).detach() for site in self._sites}
        ones = torch.ones(1)
        for site, update in first.start.items():
            name = slots[site].name
            self._start[name] = _Site(0, slots[site], [(0, update)]).added_to(self._start[name], ones)

    def __call__(self, coefficients: Float[Tensor, " vectors *sites"]) -> dict[str, Tensor]:
        made = dict(self._start)
        for site in self._sites:
            own = coefficients if coefficients.ndim == 1 else coefficients[:, site.index]
            made[site.slot.name] = site.added_to(made[site.slot.name], own)
        return made


def _sum(updates: Sequence[tuple[int, Update]], coefficients: Float[Tensor, " vectors"]) -> Tensor:
    low_rank = [(t, factors) for t, u in updates if (factors := u.factors()) is not None]
    terms = [coefficients[t] * u.dense().to(coefficients) for t, u in updates if u.factors() is None]
    if low_rank:
        b = torch.cat([f.b.to(coefficients) * (f.scaling * coefficients[t]) for t, f in low_rank], 1)
        terms.append(b @ torch.cat([f.a.to(coefficients) for _, f in low_rank], 0))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _lines(over: LogitsOver, logits: Tensor, labels: Tensor, share: float) -> Answers:
    """Return the lines of a batch; ``share`` is the rows' fraction of the task's rows."""
    lines = lines_of(over, labels, logits.shape[-1])
    if over == "classes":
        return Answers(logits, labels, torch.full((len(labels),), share / len(labels), device=labels.device))
    return Answers(lines.of(logits), lines.labels, shares(lines.rows).to(logits) * share)


def _rows_of(task: Task, split: str, rows: Sequence[int] | None) -> list[int]:
    if split not in task.splits:
        raise DataError("the split is missing", got=split, where=f"task {task.name}")
    chosen = list(range(len(task.splits[split]))) if rows is None else list(rows)
    if not chosen:
        raise DataError("a task has no rows to find coefficients on", got=0, where=f"task {task.name}, {split}")
    return chosen
