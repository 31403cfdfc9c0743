"""Tables for papers: the scores of one or several runs by method, mode, task, number of tasks or run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, TypeAlias

from tangora.errors import ArgumentError
from tangora.report.data import Run
from tangora.report.grid import Cell, Grid
from tangora.report.paper_values import MEAN, Value, Values, values_of
from tangora.report.summary import method_name, mode_name
from tangora.support.validation import did_you_mean
from tangora.tasks.metrics import direction

__all__ = ["BOLD", "DIMENSIONS", "VALUES", "TableSettings", "paper_table"]

DIMENSIONS = ("run", "mode", "method", "n_tasks", "task")
Place: TypeAlias = tuple[int, int]
"""Numbers of a row and a column, or of a run and its seed."""
VALUES, BOLD = ("score", "kept"), ("best", "all", "none")


@dataclass(frozen=True)
class TableSettings:
    """What a table shows.

    Attributes:
        rows, columns: of `DIMENSIONS`. Others that vary are further columns of names.
        value: ``score``, or ``kept``: the share of the own expert's score, in [0, 1].
        split: ``test`` or ``validation``.
        n_tasks: only fusions of so many tasks; None for the largest number, or for all if it is a row or column.
        metric: of the tasks; None for the primary one of each.
        methods, modes: only these; empty for all.
        over: ``seed`` for means and standard deviations over runs that differ in the seed alone.
        bold: ``best`` of each column, without zero-shot and experts; ``all`` with them; or ``none``.
        oracle: whether fusions that were chosen on test rows are shown.
        digits: decimals.
    """

    rows: str = "method"
    columns: str = "task"
    value: str = "score"
    split: str = "test"
    n_tasks: int | None = None
    metric: str | None = None
    methods: Sequence[str] = ()
    modes: Sequence[str] = ()
    over: str | None = None
    bold: str = "best"
    oracle: bool = False
    digits: int = 3

    def __post_init__(self) -> None:
        """Refuse what is not possible."""
        _one_of(self.rows, DIMENSIONS, "rows")
        _one_of(self.columns, DIMENSIONS, "columns")
        _one_of(self.value, VALUES, "value")
        _one_of(self.split, ("test", "validation"), "split")
        _one_of(self.bold, BOLD, "bold")
        if self.over is not None:
            _one_of(self.over, ("seed",), "over")
        if self.rows == self.columns:
            raise ArgumentError("rows and columns are the same", got=self.rows, where="--rows", fix="choose another")
        if self.over and "run" in (self.rows, self.columns):
            raise ArgumentError("runs are averaged", got="run", where="--over", fix="leave --over out, or choose rows")
        if not 0 <= self.digits <= 10:
            raise ArgumentError("digits must be 0 to 10", got=self.digits, where="--digits")


def _one_of(value: str, known: Sequence[str], name: str) -> None:
    if value not in known:
        raise ArgumentError(f"no such {name}", got=value, where=f"--{name}", fix=did_you_mean(value, list(known)))


def paper_table(runs: Sequence[Run], settings: TableSettings) -> Grid:
    """Return the table.

    A value of a task is the mean over the subsets of one size that contain it. A mean over tasks is the mean over
    subsets of each subset's mean, as in a report.

    Args:
        runs: with the scores of one metric for each task.
        settings: what is shown.

    Raises:
        ArgumentError: nothing is left to be shown, or runs do not differ in the seed alone.
    """
    return _Drawing(values_of(runs, settings), settings).grid()


class _Drawing:
    """A table in the making: which values are in its rows and columns, and how they are shown."""

    def __init__(self, values: Values, settings: TableSettings) -> None:
        self.values, self.settings = values, settings
        by_task = "task" in (settings.rows, settings.columns)
        self.shown = [v for v in values.listed if by_task or v.task == MEAN]
        if len(self.tasks) == 1:  # a mean over one task says nothing new
            self.shown = [v for v in self.shown if not by_task or v.task != MEAN]
        self.names = [*self._varying(), settings.rows]
        self.cells: dict[tuple[Any, ...], dict[Any, dict[Place, list[float | None]]]] = {}
        for value in self.shown:
            row = self.cells.setdefault(tuple(_of(value, name) for name in self.names), {})
            cell = row.setdefault(_of(value, settings.columns), {})
            cell.setdefault((value.run, value.seed), []).append(value.value)

    @property
    def tasks(self) -> list[str]:
        """The tasks that are shown, in the order of the first run."""
        return list(self.values.metrics)

    def _varying(self) -> list[str]:
        """Return the dimensions that are neither rows nor columns, and of which there are several."""
        fixed = {self.settings.rows, self.settings.columns, "task", *(["run"] if self.settings.over else [])}
        adapted = [
            v for v in self.shown if v.method[0] != "zero_shot"
        ]  # which has no mode, so that modes need no column
        listed = {d: adapted if d == "mode" else self.shown for d in DIMENSIONS if d not in fixed}
        return [d for d, values in listed.items() if len({_of(v, d) for v in values}) > 1]

    def grid(self) -> Grid:
        """Return the table."""
        heads, keys = self._order(self.settings.columns), self._keys()
        table = [[self._value(key, head) for head in heads] for key in keys]
        bold = self._best(keys, heads, table) if self.settings.bold != "none" else set()
        rows = [
            (
                [self._name(name, part) for name, part in zip(self.names, key, strict=True)],
                [self._cell(line[i], (number, i) in bold) for i in range(len(heads))],
            )
            for number, (key, line) in enumerate(zip(keys, table, strict=True))
        ]
        ruled = frozenset(i for i in range(1, len(keys)) if keys[i][:-1] != keys[i - 1][:-1])
        names = [_HEADERS.get(name, name) for name in self.names]
        return Grid(names, [self._head(head) for head in heads], rows, self._notes(), ruled)

    def _order(self, dimension: str) -> list[Any]:
        """Return the values of a dimension, in order."""
        found = list(dict.fromkeys(_of(value, dimension) for value in self.shown))
        if dimension == "n_tasks":
            return sorted(found)
        if dimension == "task":
            return [name for name in [*self.tasks, MEAN] if name in found]
        return found

    def _keys(self) -> list[tuple[Any, ...]]:
        places = [{value: i for i, value in enumerate(self._order(name))} for name in self.names]
        return sorted(self.cells, key=lambda key: [place[part] for place, part in zip(places, key, strict=True)])

    def _value(self, key: tuple[Any, ...], head: Any) -> tuple[float, float | None] | None:
        """Return the mean of a cell over subsets, and over seeds with its deviation; None if there is none."""
        by_seed = self.cells[key].get(head, {})
        means = [fmean(v for v in of_seed if v is not None) for of_seed in by_seed.values() if None not in of_seed]
        if not means or len(means) < len(by_seed):
            return None
        if not self.settings.over and len(means) == 1:
            return means[0], None
        if self.settings.over and len(means) < sum(self.values.seeds):
            where = ", ".join(self._name(name, part) for name, part in zip(self.names, key, strict=True))
            fix = "give runs with the same fusions, or choose some by --method and --mode"
            raise ArgumentError("not every run has this", got=where, where="--over", fix=fix)
        return fmean(means), stdev(means) if all(map(math.isfinite, means)) else math.nan

    def _best(
        self, keys: Sequence[tuple[Any, ...]], heads: Sequence[Any], table: Sequence[Sequence[Any]]
    ) -> set[Place]:
        """Return the cells that are bold: the best of those with which they compete, as they are shown.

        Those are the cells of a column. If tasks or their numbers are the rows, they are those of a row. Means compete
        with those over the same tasks. A cell that competes with no other is not bold. A score that is NaN or
        infinite is the worst.
        """
        groups: dict[Any, dict[Place, float]] = {}
        for number, (key, line) in enumerate(zip(keys, table, strict=True)):
            for i, (head, value) in enumerate(zip(heads, line, strict=True)):
                task = self._task(key, head)
                sense = 1 if self.settings.value == "kept" else direction(self._metrics(task))
                if value is not None and sense and self._competes(key, head):
                    rank = -math.inf if math.isnan(value[0]) else sense * float(self._text(value[0]))
                    groups.setdefault(self._group(key, head), {})[number, i] = rank
        rivals = [group for group in groups.values() if len(group) > 1]
        best = [(group, max(group.values())) for group in rivals]
        return {place for group, most in best for place, rank in group.items() if rank == most > -math.inf}

    def _group(self, key: tuple[Any, ...], head: Any) -> Any:
        """Return what is equal for cells that compete."""
        by_size, averaged = ("task", "n_tasks"), self._averaged(key, head)
        if self.settings.rows not in by_size:
            return head, averaged
        return (key[-1], head if self.settings.columns in by_size else None, averaged)

    def _averaged(self, key: tuple[Any, ...], head: Any) -> frozenset[frozenset[str]]:
        """Return the subsets that a mean over tasks is of; none for a task."""
        return frozenset(v.tasks for v in self._own(key, head) if v.task == MEAN)

    def _task(self, key: tuple[Any, ...], head: Any) -> str:
        return str(self._place(key, head).get("task", MEAN))

    def _place(self, key: tuple[Any, ...], head: Any) -> dict[str, Any]:
        return {**dict(zip(self.names, key, strict=True)), self.settings.columns: head}

    def _competes(self, key: tuple[Any, ...], head: Any) -> bool:
        if self.settings.bold == "all":
            return True
        return any(not v.is_reference and v.method[2] != "oracle" for v in self._own(key, head))

    def _own(self, key: tuple[Any, ...], head: Any) -> list[Value]:
        place = self._place(key, head)
        return [v for v in self.shown if all(_of(v, name) == part for name, part in place.items())]

    def _metrics(self, task: str) -> Iterable[str]:
        return [self.values.metrics[task]] if task != MEAN else self.values.metrics.values()

    def _text(self, value: float) -> str:
        text = f"{value:.{self.settings.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text

    def _cell(self, value: tuple[float, float | None] | None, bold: bool) -> Cell:
        if value is None:
            return Cell("")
        mean, deviation = value
        return Cell(self._text(mean), bold, None if deviation is None else self._text(deviation))

    @cached_property
    def _differ(self) -> bool:
        return len(set(self.values.metrics.values())) > 1

    @property
    def _is_mixed(self) -> bool:
        return self._differ and self.settings.value == "score" and any(v.task == MEAN for v in self.shown)

    def _head(self, head: Any) -> str:
        return f"{head} tasks" if self.settings.columns == "n_tasks" else self._name(self.settings.columns, head)

    def _name(self, dimension: str, part: Any) -> str:
        if dimension == "task":
            if part == MEAN:
                return "mean (mixed metrics)" if self._is_mixed else "mean"
            return f"{part} ({self.values.metrics[part]})" if self._differ else str(part)
        if dimension == "run":
            return self.values.labels[int(part)]
        if dimension == "mode":
            return "–" if part == "-" else mode_name(str(part))
        return _method(*part) if dimension == "method" else str(part)

    def _notes(self) -> list[str]:
        metrics = dict.fromkeys(self.values.metrics.values())
        what = "kept: share of the own expert's score" if self.settings.value == "kept" else "score"
        several = "s" if len(metrics) > 1 else ""
        said = [f"{what}, on {self.settings.split} rows; metric{several}: {', '.join(metrics)}", *self.values.notes]
        if len(sizes := self._order("n_tasks")) == 1 and self.settings.columns != "n_tasks":
            said[0] += f"; {sizes[0]} tasks fused"
        if self._is_mixed and direction(metrics):
            said.append(f"the mean is over different metrics: {', '.join(metrics)}")
        elif self._is_mixed:
            said.append("there is no mean score: the metrics have no common scale")
        if self.settings.value == "score" and (less := [name for name in metrics if direction([name]) < 0]):
            said.append(f"less is better of {', '.join(less)}")
        if any(value.method[2] == "oracle" for value in self.shown):
            said.append("† coefficients chosen on test rows: an upper bound, not a result")
        if what := _what_differs(self.values.seeds, self.settings.over, self.values.labels):
            said.append(f"mean ± sample standard deviation (n - 1) of {what}")
        return said


def _what_differs(seeds: Sequence[int], over: str | None, labels: Sequence[str]) -> str:
    """Return what means and deviations are of; nothing without any."""
    if max(seeds) == 1:
        return f"{len(seeds)} runs that differ in the seed" if over else ""
    if over or len(seeds) == 1:
        return f"{sum(seeds)} seeds"
    if len(set(seeds)) == 1:
        return f"the {seeds[0]} seeds of each run"
    return "the seeds of each run: " + ", ".join(f"{label} {n}" for label, n in zip(labels, seeds, strict=True))


_HEADERS: Mapping[str, str] = {"n_tasks": "tasks fused"}


def _of(value: Value, dimension: str) -> Any:
    return getattr(value, dimension)


def _method(name: str, space: str, selection: str) -> str:
    if name in ("zero_shot", "expert"):
        return {"zero_shot": "zero-shot", "expert": "experts"}[name]
    return method_name(name, space) + (" †" if selection == "oracle" else "")
