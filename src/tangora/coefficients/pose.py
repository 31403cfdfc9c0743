"""Pose the problem of a search: from adapters, a base and tasks to a `Problem`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tangora.coefficients.forward import ForwardLogits
from tangora.coefficients.problem import Coefficients, Problem, silent
from tangora.coefficients.requirements import is_plain_sum
from tangora.coefficients.rows import pick
from tangora.evaluation.candidates import Scoring
from tangora.methods import get
from tangora.modes.contract import mode_of
from tangora.support.seams import SEARCHES
from tangora.support.source import source_digest
from tangora.tangent.columns import make_columns, site_columns
from tangora.tasks.values import only

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.coefficients.contract import Search, SearchSettings
    from tangora.coefficients.found import Found
    from tangora.fusion.fusion import Fusion
    from tangora.methods import Method
    from tangora.modes.contract import Mode
    from tangora.tangent.columns import Columns
    from tangora.tasks import Base, Task
    from tangora.tasks.contract import Family

__all__ = ["Bench", "ColumnSource", "Posed", "code_of", "pose"]


class ColumnSource(Protocol):
    """Makes or keeps the columns of some adapters."""

    def __call__(self, task: str, split: str, rows: Sequence[int] | None, per_site: bool) -> Columns:
        """Return the columns of a task's split, or of some of its rows."""
        ...


@dataclass(frozen=True)
class Bench:
    """What fused models are made from and judged on.

    Attributes:
        base: the adapters' base.
        tasks: name -> task.
        scoring: scores fused models.
        columns: of the adapters, named by their tasks; None to make them when they are asked for.
        batch_size: rows per forward pass.
    """

    base: Base
    tasks: Mapping[str, Task]
    scoring: Scoring
    columns: ColumnSource | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Posed:
    """A problem with the settings of a search, and the weights whose loss was evaluated so far, in order."""

    problem: Problem
    settings: SearchSettings
    tried: list[Coefficients]

    def solve(self) -> Found:
        """Search; the result says on which split and how many rows of each task."""
        found: Found = SEARCHES.get(self.settings.name)(self.problem, self.settings)
        about = {**found.settings, "split": self.problem.split, "labels": self.settings.row_limit}
        return replace(found, settings=about, tried=tuple(self.tried))


def pose(
    bench: Bench,
    fusion: Fusion,
    tasks: Sequence[str],
    settings: SearchSettings,
    *,
    method: str = "task_arithmetic",
    parameters: Mapping[str, Any] | None = None,
    split: str = "validation",
    seed: int = 0,
    on_step: Callable[[int, int, str], None] = silent,
) -> Posed:
    """Pose the problem of fusing adapters, one of each task, by a method.

    Args:
        bench: base, tasks and how a fused model is scored.
        fusion: of the adapters.
        tasks: names of their tasks, in the order of the adapters.
        settings: of the search: how many rows, and whether a coefficient is a site's own.
        method: fuses them.
        parameters: of the method.
        split: whose rows may be looked at.
        seed: of the choice of rows and of whatever the search draws.
        on_step: see `Problem`.
    """
    chosen, given = get(method), dict(parameters or {})
    rows = {name: pick(bench.tasks[name].splits[split].targets, settings.row_limit, seed, name) for name in tasks}
    views = _Views(bench, fusion, tuple(tasks), chosen, given, split, settings, rows)
    linear = all(mode_of(adapter).linear_in_coefficients for adapter in fusion.adapters)
    problem = Problem(
        tuple(tasks),
        rows,
        split,
        seed,
        sites=tuple(sorted({s for a in fusion.adapters for s in a.updates})) if settings.per_site else (),
        loss_of=views.loss,
        logits_of=views.logits if chosen.additive else None,
        columns_of=views.columns if linear and is_plain_sum(chosen) else None,
        on_step=on_step,
    )
    return Posed(problem, settings, views.tried)


class _Views:
    """The three views of a problem, each made when it is asked for."""

    def __init__(
        self,
        bench: Bench,
        fusion: Fusion,
        tasks: tuple[str, ...],
        method: Method,
        parameters: dict[str, Any],
        split: str,
        settings: SearchSettings,
        rows: Mapping[str, Sequence[int]],
    ) -> None:
        self._bench, self._fusion, self._tasks, self._split = bench, fusion, tasks, split
        self._method, self._parameters, self._settings = method, parameters, settings
        self._rows, self._some = rows, rows if settings.row_limit is not None else None
        self.tried: list[Coefficients] = []

    def loss(self, weights: Coefficients) -> float:
        self.tried.append(weights)
        name, given = self._method.name, self._parameters
        scoring = self._bench.scoring if self._some is None else self._bench.scoring.on(self._some, self._split)
        results = scoring.results(self._fusion, name, weights, given, self._tasks, self._split)
        return float(np.mean([result.loss for result in results.values()]))

    def logits(self) -> ForwardLogits:
        return ForwardLogits(
            self._bench.base,
            [self._bench.tasks[name] for name in self._tasks],
            self._split,
            dict(zip(self._tasks, self._summands(), strict=True)),
            per_site=self._settings.per_site,
            rows=self._rows,
            batch_size=self._bench.batch_size,
        )

    def columns(self) -> list[Columns]:
        source, rows = self._bench.columns or self._made, self._some or {}
        per_site = self._settings.per_site
        return [source(n, self._split, rows.get(n), per_site).subset(self._tasks) for n in self._tasks]

    def _made(self, task: str, split: str, rows: Sequence[int] | None, per_site: bool) -> Columns:
        bench, adapters = self._bench, dict(zip(self._tasks, self._fusion.adapters, strict=True))
        if per_site:
            return site_columns(bench.base, bench.tasks[task], split, adapters, rows=rows)
        part = bench.tasks[task] if rows is None else only(bench.tasks[task], split, rows)
        return make_columns(bench.base, part, split, adapters, batch_size=bench.batch_size)

    def _summands(self) -> Sequence[Adapter]:
        """What each coefficient multiplies: the adapters, or what the method makes of each beside the others."""
        count = len(self._tasks)
        if is_plain_sum(self._method):
            return self._fusion.adapters
        units = [[float(i == t) for i in range(count)] for t in range(count)]
        return [self._fusion.merge(self._method.name, unit, self._parameters) for unit in units]


def code_of(search: Search, method: Method, family: Family[Any, Any], *modes: Mode) -> str:
    """Return the digest of the code that decides what a search finds: its own, the method's, and that of the views.

    Args:
        search, method: find and fuse.
        family, modes: decide the answers that are judged.
    """
    without = ("tangora.errors", "tangora.progress")
    return source_digest(search, search.settings, method.function, pose, family, *modes, without=without)
