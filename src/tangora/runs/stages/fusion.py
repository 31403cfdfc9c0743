"""Stage two: every subset, space and method; coefficients selected on validation, scored on test.

For one cell, a (mode, space, subset, entry), the candidates are the entry's grid, or the weights that its search
tries. Selection looks at the mean over the subset's tasks of score / expert of the same mode, on the validation split
(``validation``), or on test itself (``oracle``); the lower mean loss breaks ties. If nothing is chosen, the entry has
one candidate and its selection is called ``given``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from tangora.coefficients import grid
from tangora.config.recipe import FusionEntry, Recipe
from tangora.config.settings import Space
from tangora.evaluation.candidates import Scoring
from tangora.evaluation.evaluator import Evaluator, Result
from tangora.evaluation.results import Outcome, rank_kept
from tangora.fusion.fusion import Fusion
from tangora.methods import get
from tangora.progress import Progress
from tangora.runs.subsets import choose_subsets

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.coefficients.found import Found
    from tangora.fusion.statistics import Statistics
    from tangora.fusion.weights import Table
    from tangora.runs.stages.columns import ColumnStore
    from tangora.runs.stages.search import Searches

__all__ = [
    "CANDIDATE_COLUMNS",
    "Candidate",
    "Cell",
    "CellResult",
    "Fused",
    "FusionStage",
    "candidate_rows",
    "cells",
    "search_rows",
]

CANDIDATE_COLUMNS = [
    "mode", "method", "space", "subset", "split", "weights", "parameters", "task", "score", "loss",
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One place in the comparison, before selection."""

    mode: str
    space: Space
    subset: tuple[str, ...]
    entry: FusionEntry

    @property
    def place(self) -> dict[str, str]:
        """The columns that name the cell in a table."""
        subset = "+".join(self.subset)
        return {"mode": self.mode, "method": self.entry.label, "space": self.space, "subset": subset}


@dataclass(frozen=True)
class Candidate:
    """One way to fill a cell.

    Attributes:
        weights: one per task of the subset, or site -> one per task.
        parameters: of the method.
    """

    cell: Cell
    weights: Table
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class CellResult:
    """How a candidate does on a split of some tasks."""

    candidate: Candidate
    split: str
    results: Mapping[str, Result]

    @property
    def loss(self) -> float:
        """The mean loss over the tasks."""
        return float(np.mean([r.loss for r in self.results.values()]))


@dataclass(frozen=True)
class Fused:
    """The candidate that was chosen for a cell, its scores, and everything needed to make the adapter again.

    Attributes:
        results: split -> task -> result.
        tried: the candidates that it was chosen from, on the split that chose; empty if nothing was chosen.
        found: by a search: how good the weights are known to be.
    """

    candidate: Candidate
    selection: str
    results: Mapping[str, Mapping[str, Result]]
    tried: tuple[CellResult, ...] = ()
    found: Found | None = None

    @property
    def cell(self) -> Cell:
        """The candidate's."""
        return self.candidate.cell

    @property
    def outcome(self) -> Outcome:
        """The lines of ``scores.csv``."""
        cell, coefficients = self.cell, {"weights": self.candidate.weights, **self.candidate.parameters}
        label = cell.entry.label
        return Outcome(cell.mode, label, cell.space, cell.subset, self.selection, coefficients, self.results)


def cells(recipe: Recipe) -> Iterator[Cell]:
    """Every (mode, space, subset, entry) of a recipe; full fine-tuning has no factors."""
    subsets = choose_subsets([t.name for t in recipe.tasks], recipe.fusion.subsets, recipe.seed)
    for mode, settings in recipe.modes.items():
        for space in get_args(Space):
            if space != "delta" and settings.train == "full":
                continue
            entries = [e for e in recipe.fusion.methods if space in e.spaces and mode in (e.modes or [mode])]
            for subset in subsets:
                for entry in entries:
                    if len(subset) in (entry.sizes or [len(subset)]):
                        yield Cell(mode, space, subset, entry)


def candidate_rows(fused: Iterable[Fused]) -> list[dict[str, Any]]:
    """The rows of ``candidates.csv``: every candidate that something was chosen from, task by task."""
    return [
        {
            **result.candidate.cell.place,
            "split": result.split,
            "weights": result.candidate.weights,
            "parameters": result.candidate.parameters,
            "task": task,
            "score": one.score,
            "loss": one.loss,
        }
        for chosen in fused
        for result in chosen.tried
        for task, one in result.results.items()
    ]


def search_rows(fused: Iterable[Fused]) -> list[dict[str, Any]]:
    """The rows of ``searches.json``: what each search found, and how good that is known to be."""
    return [
        {**one.cell.place, **one.found.to_dict(), "weights": one.found.weights}
        for one in fused
        if one.found is not None
    ]


class Fusions:
    """The experts of one mode and space, checked once for all their subsets.

    One mode and space at a time are kept, since stacked full models are large.
    """

    def __init__(
        self,
        experts: Mapping[str, Mapping[str, Adapter]],
        statistics: Mapping[str, Mapping[str, Statistics]],
        seed: int,
    ) -> None:
        self._experts, self._statistics, self._seed = experts, statistics, seed
        self._whole: tuple[tuple[str, str], Fusion] | None = None
        self._part: tuple[tuple[str, ...], Fusion] | None = None

    def of(self, cell: Cell) -> Fusion:
        """The fusion of the cell's experts; the same one again for the next cell of the same subset."""
        experts = self._experts[cell.mode]
        if self._whole is None or self._whole[0] != (cell.mode, cell.space):
            self._whole = self._part = None  # frees them before the next are stacked
            known, names = list(self._statistics.get(cell.mode, {}).values()), list(experts)
            whole = Fusion(list(experts.values()), cell.space, seed=self._seed, names=names, statistics=known)
            self._whole = ((cell.mode, cell.space), whole)
        if self._part is None or self._part[0] != cell.subset:
            order = list(experts)
            self._part = (cell.subset, self._whole[1].subset([order.index(n) for n in cell.subset]))
        return self._part[1]


@dataclass(frozen=True)
class FusionStage:
    """Fills cells one after the other.

    Args:
        recipe: what to compare.
        experts: mode -> task -> adapter, tasks in the recipe's order.
        evaluator: has the base and the tasks; remembers scores.
        baselines: (mode, split) -> task -> result of that mode's expert on its own task.
        progress: shows which cell is being filled.
        statistics: mode -> task -> those of the expert, for methods that need them.
        searches: find coefficients.
        columns: logits of linearized modes, on which linear fusions are scored without a forward pass.
    """

    recipe: Recipe
    experts: Mapping[str, Mapping[str, Adapter]]
    evaluator: Evaluator
    baselines: Mapping[tuple[str, str], Mapping[str, Result]]
    progress: Progress
    statistics: Mapping[str, Mapping[str, Statistics]] = field(default_factory=dict)
    searches: Searches | None = None
    columns: ColumnStore | None = None

    @cached_property
    def fusions(self) -> Fusions:
        """The experts, stacked when a cell needs them."""
        return Fusions(self.experts, self.statistics, self.recipe.seed)

    def run(self) -> list[Fused]:
        """Fill every cell: select, and score."""
        listed = list(cells(self.recipe))
        self.progress.begin("fuse and score", len(listed))
        fused: list[Fused] = []
        for done, cell in enumerate(listed):
            what = f"{cell.mode} · {cell.entry.label} · {cell.space} · {len(cell.subset)} tasks"
            fused += self.fill(cell, partial(self._show, done, what))
            self.progress.advance(detail=what)
        self.progress.end()
        return fused

    def _show(self, cells_done: int, what: str, done: int, total: int, detail: str) -> None:
        """Show a step of a search, which may take minutes, within the cell."""
        self.progress.update(cells_done, f"{what} · {done} of {total}, {detail}")

    def fill(self, cell: Cell, on_step: Callable[[int, int, str], None]) -> list[Fused]:
        """Choose a candidate of the cell for each way of selecting, and score it on every task's test rows."""
        listed = _listed(cell)
        if cell.entry.search is None and len(listed) == 1:
            return [self._finished(listed[0], "given")]
        chosen = []
        for selection in self.recipe.fusion.selection:
            split = "test" if selection == "oracle" else "validation"
            if cell.entry.search is None:
                tried = [self.score(candidate, cell.subset, split) for candidate in listed]
                best = grid.select(tried, [self._rank(result) for result in tried], where=_named(cell))
                chosen.append(self._finished(best.candidate, selection, tried))
            else:
                chosen.append(self._searched(cell, selection, split, on_step))
        return chosen

    def score(self, candidate: Candidate, tasks: Sequence[str], split: str) -> CellResult:
        """Score a candidate on ``split`` of ``tasks``; the same candidate has the same result."""
        cell = candidate.cell
        fusion, method = self.fusions.of(cell), cell.entry.method
        scoring = self._scoring(cell.mode)
        results = scoring.results(fusion, method, candidate.weights, candidate.parameters, tasks, split)
        return CellResult(candidate, split, results)

    def make(self, fused: Fused) -> Adapter:
        """Make the adapter of a filled cell."""
        chosen = fused.candidate
        made = self.fusions.of(fused.cell).merge(fused.cell.entry.method, chosen.weights, dict(chosen.parameters))
        return made if fused.found is None else made.with_selection(fused.found.to_dict())

    def _scoring(self, mode: str) -> Scoring:
        linear = self.columns is not None and self.columns.scores(mode)
        columns = partial(self.columns.results, mode) if self.columns is not None and linear else None
        return Scoring(self.evaluator, self.recipe.seed, columns)

    def _rank(self, result: CellResult) -> tuple[float, float]:
        experts = self.baselines[result.candidate.cell.mode, result.split]
        scores = {task: one.score for task, one in result.results.items()}
        metrics = {task.name: task.metric for task in self.recipe.tasks}
        return rank_kept(scores, {task: experts[task].score for task in scores}, metrics), -result.loss

    def _searched(self, cell: Cell, selection: str, split: str, on_step: Callable[[int, int, str], None]) -> Fused:
        assert self.searches is not None
        entry, scoring = cell.entry, self._scoring(cell.mode)
        fusion = self.fusions.of(cell)
        found = self.searches.find(entry, cell.mode, cell.subset, fusion, split, scoring, on_step)
        assert entry.search is not None
        # Scores of the table are on whole splits, and those that a search tried on some rows are not.
        weights = list(found.tried) if entry.search.row_limit is None else []
        weights += [found.weights] if found.weights not in weights else []
        tried = [self.score(Candidate(cell, w, entry.parameters), cell.subset, split) for w in weights]
        return self._finished(Candidate(cell, found.weights, entry.parameters), selection, tried, found)

    def _finished(
        self, candidate: Candidate, selection: str, tried: Sequence[CellResult] = (), found: Found | None = None
    ) -> Fused:
        everything = [t.name for t in self.recipe.tasks]
        results = {"test": self.score(candidate, everything, "test").results}
        if selection == "validation":
            results["validation"] = self.score(candidate, candidate.cell.subset, "validation").results
        return Fused(candidate, selection, results, tuple(tried), found)


def _listed(cell: Cell) -> list[Candidate]:
    """The entry's grid: one candidate, if it lists nothing."""
    entry, count = cell.entry, len(cell.subset)
    weights: Any = get(entry.method).default_weight if entry.weights is None else entry.weights
    points = grid.candidates(weights, entry.parameters)
    return [Candidate(cell, [point.weight] * count, dict(point.parameters)) for point in points]


def _named(cell: Cell) -> str:
    return f"{cell.mode} · {cell.entry.label} · {cell.space} · {'+'.join(cell.subset)}"
