"""Set up the problem of a search: from adapters, a base and tasks to a `Problem`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tangora.coefficients.forward import ForwardLogits
from tangora.coefficients.problem import Coefficients, Problem, silent
from tangora.coefficients.requirements import is_plain_sum
from tangora.coefficients.rows import pick
from tangora.errors import FusionError
from tangora.evaluation.candidates import Scoring
from tangora.evaluation.generated import with_own_answers
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

__all__ = ["ColumnSource", "Posed", "SearchContext", "code_of", "pose"]


class ColumnSource(Protocol):
    """Provides the columns of some adapters."""

    def __call__(self, task: str, split: str, rows: Sequence[int] | None, per_site: bool) -> Columns:
        """Return the columns of a task's split, or of the given rows."""
        ...


@dataclass(frozen=True)
class SearchContext:
    """The base, tasks and scoring of a search.

    Attributes:
        base: the adapters' base.
        tasks: name -> task.
        scoring: scores fused models.
        columns: provides those of the adapters, named by their tasks; None to compute them on first use.
        batch_size: rows per forward pass.
    """

    base: Base
    tasks: Mapping[str, Task]
    scoring: Scoring
    columns: ColumnSource | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Posed:
    """A problem with the settings of a search, and the weights evaluated so far, in order."""

    problem: Problem
    settings: SearchSettings
    tried: list[Coefficients]

    def solve(self) -> Found:
        """Search, and record in the result the split and the number of rows of each task."""
        found: Found = SEARCHES.get(self.settings.name)(self.problem, self.settings)
        settings = {**found.settings, "split": self.problem.split, "labels": self.settings.row_limit}
        return replace(found, settings=settings, tried=tuple(self.tried))


def pose(
    context: SearchContext,
    fusion: Fusion,
    tasks: Sequence[str],
    settings: SearchSettings,
    *,
    method: str = "task_arithmetic",
    parameters: Mapping[str, Any] | None = None,
    split: str = "validation",
    seed: int = 0,
    scored: Sequence[str] | None = None,
    on_step: Callable[[int, int, str], None] = silent,
) -> Posed:
    """Set up the problem of fusing adapters, one for each task, by a method.

    Args:
        context: base, tasks and scoring.
        fusion: of the adapters.
        tasks: names of their tasks, in the order of the adapters.
        settings: of the search; they limit the rows, and may give each site its own coefficient.
        method: the fusion method.
        parameters: of the method.
        split: the search uses rows of this split.
        seed: of the choice of rows and of the search's random draws.
        scored: the tasks whose rows are used, if they are not those of the adapters: an adapter may be of no task here,
            and a task may have no adapter.
        on_step: see `Problem`.

    Raises:
        FusionError: a task has no adapter, and the search needs the answers that it generates.
    """
    chosen, fixed, scored = get(method), dict(parameters or {}), list(tasks if scored is None else scored)
    rows = {name: pick(context.tasks[name].splits[split].targets, settings.row_limit, seed, name) for name in scored}
    views = _Views(context, fusion, tuple(tasks), chosen, fixed, split, settings, rows)
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
    """The three views of a problem, each computed on first use."""

    def __init__(
        self,
        context: SearchContext,
        fusion: Fusion,
        tasks: tuple[str, ...],
        method: Method,
        parameters: dict[str, Any],
        split: str,
        settings: SearchSettings,
        rows: Mapping[str, Sequence[int]],
    ) -> None:
        self._context, self._fusion, self._vectors, self._split = context, fusion, tasks, split
        self._tasks = tuple(rows)
        self._method, self._parameters, self._settings = method, parameters, settings
        self._rows, self._some = rows, rows if settings.row_limit is not None else None
        self._answered: dict[str, Task] = {}
        self.tried: list[Coefficients] = []

    def loss(self, weights: Coefficients) -> float:
        self.tried.append(weights)
        name, parameters = self._method.name, self._parameters
        scoring = self._context.scoring if self._some is None else self._context.scoring.on(self._some, self._split)
        results = scoring.results(self._fusion, name, weights, parameters, self._tasks, self._split)
        return float(np.mean([result.loss for result in results.values()]))

    def logits(self) -> ForwardLogits:
        return ForwardLogits(
            self._context.base,
            [self._task(name) for name in self._tasks],
            self._split,
            dict(zip(self._vectors, self._summands(), strict=True)),
            per_site=self._settings.per_site,
            rows={name: rows for name, rows in self._rows.items() if not self._generates(name)},
            batch_size=self._context.batch_size,
        )

    def _generates(self, name: str) -> bool:
        """Return whether the target tokens of a task are those that its expert generates, since there are no labels."""
        return self._context.tasks[name].form.kind == "text" and not SEARCHES.get(self._settings.name).labelled

    def _task(self, name: str) -> Task:
        """Return a task; if its target tokens have to be generated, with the chosen rows only."""
        task = self._context.tasks[name]
        if not self._generates(name):
            return task
        if name not in self._answered:
            if name not in self._vectors:
                what, fix = (
                    f"search {self._settings.name} follows each task's own adapter",
                    "choose a search with labels",
                )
                raise FusionError(what, got=name, where="tasks", fix=fix)
            expert = self._fusion.adapters[self._vectors.index(name)]
            made = with_own_answers(self._context.base, task, self._split, self._rows[name], expert)
            self._answered[name] = made
        return self._answered[name]

    def columns(self) -> list[Columns]:
        if any(map(self._generates, self._tasks)):
            return [self._made(n, self._split, None, self._settings.per_site) for n in self._tasks]
        source, rows = self._context.columns or self._made, self._some or {}
        per_site = self._settings.per_site
        return [source(n, self._split, rows.get(n), per_site).subset(self._vectors) for n in self._tasks]

    def _made(self, task: str, split: str, rows: Sequence[int] | None, per_site: bool) -> Columns:
        context, adapters = self._context, dict(zip(self._vectors, self._fusion.adapters, strict=True))
        if per_site:
            return site_columns(context.base, self._task(task), split, adapters, rows=rows)
        part = self._task(task) if rows is None else only(self._task(task), split, rows)
        return make_columns(context.base, part, split, adapters, batch_size=context.batch_size)

    def _summands(self) -> Sequence[Adapter]:
        """Return what each coefficient multiplies: the adapters, or the method's result for each beside the others."""
        count = len(self._vectors)
        if is_plain_sum(self._method):
            return self._fusion.adapters
        units = [[float(i == t) for i in range(count)] for t in range(count)]
        return [self._fusion.merge(self._method.name, unit, self._parameters) for unit in units]


def code_of(search: Search, method: Method, family: Family[Any, Any], *modes: Mode) -> str:
    """Return a digest of the code that determines a search's result: its own, the method's and that of the views.

    Args:
        search, method: the search and the fusion method.
        family, modes: of the adapters; they determine the scored answers.
    """
    without = ("tangora.errors", "tangora.progress")
    return source_digest(search, search.settings, method.function, pose, family, *modes, without=without)
