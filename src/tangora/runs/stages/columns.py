"""Columns of a run's linearized modes, computed on first use and cached by a hash of their inputs.

RUN/cache/columns/<mode>/<task>-<split>.safetensors               one column per expert
RUN/cache/columns/<mode>/<task>-<split>-start.safetensors         the same with an untrained head
RUN/cache/columns/<mode>/<task>-<split>-sites-<rows>.safetensors  one column per expert and site, on some rows
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from tangora.errors import TangoraError
from tangora.evaluation.evaluator import Result
from tangora.modes.contract import mode_of
from tangora.support.files import digest
from tangora.tangent.columns import columns_key, load_columns, make_columns, site_columns
from tangora.tasks.metrics import score

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tangent.columns import Columns
    from tangora.tasks import Base, Task

__all__ = ["ColumnStore"]

log = logging.getLogger("tangora")


@dataclass
class ColumnStore:
    """Columns of every expert of a mode, and the scores of any linear fusion of them.

    Args:
        base: the model.
        tasks: name -> task.
        experts: mode -> task -> adapter.
        folder: mode -> folder of the files.
        batch_size: rows per forward pass.
    """

    base: Base
    tasks: Mapping[str, Task]
    experts: Mapping[str, Mapping[str, Adapter]]
    folder: Callable[[str], Path]
    batch_size: int = 64
    _kept: dict[str, Columns] = field(default_factory=dict, repr=False)

    def scores(self, mode: str) -> bool:
        """Return whether fusions of a mode are scored on columns: linear logits, and classes in every task."""
        linear = all(mode_of(adapter).linear_in_coefficients for adapter in self.experts[mode].values())
        return linear and all(t.form.logits_over == "classes" for t in self.tasks.values())

    def get(
        self,
        mode: str,
        task: str,
        split: str,
        rows: Sequence[int] | None = None,
        per_site: bool = False,
        *,
        trained: bool = True,
    ) -> Columns:
        """Return columns of every expert of ``mode`` on a task's split, or on some of its rows.

        Args:
            mode, task, split: of the columns.
            rows: of the split; by default all.
            per_site: one column per expert and site.
            trained: whether logits use the head of the task's expert.
        """
        if per_site:
            return self._stored(mode, task, split, None if rows is None else tuple(rows))
        full = self._stored(mode, task, split, (), trained)
        if rows is None:
            return full
        wanted = torch.isin(full.examples, torch.tensor(list(rows)))
        return full.rows(wanted.nonzero().flatten())

    def results(
        self,
        mode: str,
        tasks: Sequence[str],
        split: str,
        weights: Mapping[str, float],
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, Result]:
        """Return the results of the fusion with these weights, without a forward pass.

        A fusion contains the heads of its experts. On another task, its logits are those of an untrained head; their
        columns are computed on first use.

        Args:
            mode: of the experts.
            tasks: to score.
            split: of each task.
            weights: a coefficient for every fused expert, by its task.
            rows: task -> rows to score on; by default all.
        """
        chosen = rows or {}
        trained = {n: n in weights or not any(a.heads for a in self.experts[mode].values()) for n in tasks}
        columns = {n: self.get(mode, n, split, chosen.get(n), trained=trained[n]) for n in tasks}
        return {n: self._result(columns[n], n, weights) for n in tasks}

    def _result(self, columns: Columns, task: str, weights: Mapping[str, float]) -> Result:
        coefficients = torch.tensor([weights.get(name, 0.0) for name in columns.vectors])
        logits = columns.logits(coefficients)
        values = logits.argmax(-1).tolist()
        loss = torch.nn.functional.cross_entropy(logits, columns.labels)
        return Result(float(score(self.tasks[task].metric, values, columns.labels.tolist())), float(loss), values)

    def _stored(self, mode: str, task: str, split: str, rows: tuple[int, ...] | None, trained: bool = True) -> Columns:
        """Return columns from memory, from disk, or computed now; ``rows`` is empty for columns not per site."""
        experts = dict(self.experts[mode])
        if not trained:
            experts = {name: replace(expert, heads={}) for name, expert in experts.items()}
        per_site = rows != ()
        key = columns_key(self.base, self.tasks[task], split, experts, per_site)
        kept = f"{key}-{rows}"
        if kept not in self._kept:
            name = f"{task}-{split}{self._suffix(rows) if trained else '-start'}"
            path = self.folder(mode) / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Jobs in two processes may need the same columns: the second waits, and then reads them.
            with FileLock(path.with_name(f".{name}.lock")):
                try:
                    self._kept[kept] = load_columns(path, key)
                except TangoraError:  # missing, truncated, or of experts that were trained again since
                    log.info("columns of %s: %s, %s", mode, task, split)
                    self._kept[kept] = self._made(experts, task, split, rows)
                    self._kept[kept].save(path)
        return self._kept[kept]

    def _made(self, experts: Mapping[str, Adapter], task: str, split: str, rows: tuple[int, ...] | None) -> Columns:
        of_task = self.tasks[task]
        if rows == ():
            return make_columns(self.base, of_task, split, experts, batch_size=self.batch_size)
        return site_columns(self.base, of_task, split, experts, rows=rows)

    @staticmethod
    def _suffix(rows: tuple[int, ...] | None) -> str:
        return "" if rows == () else "-sites" if rows is None else f"-sites-{digest(list(rows))[:12]}"
