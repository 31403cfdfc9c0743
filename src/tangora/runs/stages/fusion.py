"""Stage two: every subset, space and method; coefficients selected on validation, scored on test.

For one cell, a (mode, space, subset, entry), the candidates are the entry's grid, or the weights that its search tries.
Selection compares the mean over the subset's tasks of score / expert of the same mode, on the validation split
(``validation``), or on test itself (``oracle``); the lower mean loss breaks ties. If the entry has only one candidate,
nothing is selected, and its selection is called ``given``. So is that of a router, which has no coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.coefficients import grid
from tangora.config.fusion import SearchSettings
from tangora.config.recipe import Recipe
from tangora.evaluation.candidates import Scoring
from tangora.evaluation.evaluator import Result
from tangora.evaluation.results import Outcome
from tangora.evaluation.shares import rank_kept
from tangora.methods import get
from tangora.progress import Progress
from tangora.runs.stages.cells import Cell
from tangora.runs.stages.polisher import Polisher
from tangora.runs.stages.router import Routings, selection_of
from tangora.runs.stages.search import Searches

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.fusion.fusion import Fusion
    from tangora.fusion.weights import WeightTable

__all__ = [
    "CANDIDATE_COLUMNS",
    "Candidate",
    "CellResult",
    "Fused",
    "FusionStage",
    "candidate_rows",
    "polish_rows",
    "score",
    "search_rows",
]

OnStep = Callable[[int, int, str], None]

CANDIDATE_COLUMNS = [
    "mode", "method", "space", "subset", "split", "weights", "parameters", "task", "score", "loss",
]  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One way to fill a cell.

    Attributes:
        weights: one per task of the subset, or site -> one per task.
        parameters: of the method.
    """

    cell: Cell
    weights: WeightTable
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class CellResult:
    """The results of a candidate on a split of some tasks."""

    candidate: Candidate
    split: str
    results: Mapping[str, Result]

    @property
    def loss(self) -> float:
        """The mean loss over the tasks."""
        return float(np.mean([r.loss for r in self.results.values()]))


@dataclass(frozen=True)
class Fused:
    """The chosen candidate of a cell, its scores, and everything needed to make the adapter again.

    Attributes:
        results: split -> task -> result.
        tried: the candidates that it was selected from, on the split of the selection; empty without selection.
        found: the result of a search, with its certificate.
        polished: how the chosen candidate was trained further, and its results before; None if it was not.
    """

    candidate: Candidate
    selection: str
    results: Mapping[str, Mapping[str, Result]]
    tried: tuple[CellResult, ...] = ()
    found: Found | None = None
    polished: Mapping[str, Any] | None = None

    @property
    def cell(self) -> Cell:
        """The candidate's cell."""
        return self.candidate.cell

    @property
    def outcome(self) -> Outcome:
        """The lines of ``scores.csv``."""
        cell, parameters = self.cell, self.candidate.parameters
        coefficients: Mapping[str, Any] = {"weights": self.candidate.weights, **parameters}
        if cell.entry.route is not None:
            coefficients = {"parameters": {n: value for n, value in parameters.items() if value is not None}}
        label = cell.entry.label
        return Outcome(cell.mode, label, cell.space, cell.subset, self.selection, coefficients, self.results)


def candidate_rows(fused: Iterable[Fused]) -> list[dict[str, Any]]:
    """Return the rows of ``candidates.csv``: every compared candidate, task by task."""
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
    """Return the rows of ``searches.json``: the weights of each search, with their certificates."""
    return [
        {**one.cell.place, **one.found.to_dict(), "weights": one.found.weights}
        for one in fused
        if one.found is not None
    ]


def polish_rows(fused: Iterable[Fused]) -> list[dict[str, Any]]:
    """Return the rows of ``polish.json``: the curves of each polish, and the scores before and after it."""
    return [{**one.cell.place, "selection": one.selection, **one.polished} for one in fused if one.polished is not None]


def score(candidate: Candidate, fusion: Fusion, tasks: Sequence[str], split: str, scoring: Scoring) -> CellResult:
    """Score a candidate on ``split`` of ``tasks``.

    Args:
        candidate: to score.
        fusion: of the adapters of the cell's subset.
        tasks: names.
        split: of the tasks.
        scoring: by forward passes or on columns; uses cached results.
    """
    entry = candidate.cell.entry
    results = scoring.results(fusion, entry.method, candidate.weights, candidate.parameters, tasks, split, entry.rank)
    return CellResult(candidate, split, results)


@dataclass(frozen=True)
class FusionStage:
    """Fills the cells of one mode and space.

    Args:
        recipe: defines the comparison.
        fusion: of the mode's experts, named by their tasks.
        scoring: scores fused candidates.
        baselines: split -> task -> result of the expert on its own task.
        searches: find coefficients.
        polisher: trains chosen candidates further.
        router: puts experts together that stay apart.
    """

    recipe: Recipe
    fusion: Fusion
    scoring: Scoring
    baselines: Mapping[str, Mapping[str, Result]]
    searches: Searches
    polisher: Polisher
    router: Routings

    def run(self, listed: Sequence[Cell], progress: Progress) -> list[Fused]:
        """Fill the cells, subset by subset; the caller begins and ends the stage of progress."""
        fused: list[Fused] = []
        done, order = 0, list(self.fusion.names)
        for subset, of_subset in groupby(listed, key=lambda cell: cell.subset):
            part = self.fusion.subset([order.index(name) for name in subset])  # caches what its cells share
            for cell in of_subset:
                what = f"{cell.entry.label} · {len(cell.subset)} tasks"
                fused += self._filled(cell, part, partial(_show, progress, done, what))
                progress.advance(detail=what)
                done += 1
        return fused

    def _filled(self, cell: Cell, fusion: Fusion, on_step: OnStep) -> list[Fused]:
        """Return the chosen candidate for each kind of selection."""
        if cell.entry.route is not None:
            return [self._routed(cell, fusion, on_step)]
        listed = _listed(cell)
        if cell.entry.search is None and len(listed) == 1:
            return [self._finished(listed[0], fusion, "given", on_step)]
        chosen = []
        for selection in self.recipe.fusion.selection:
            split = "test" if selection == "oracle" else "validation"
            if cell.entry.search is None:
                tried = [score(candidate, fusion, cell.subset, split, self.scoring) for candidate in listed]
                best = grid.select(tried, [self._rank(result) for result in tried], where=_named(cell))
                chosen.append(self._finished(best.candidate, fusion, selection, on_step, tried))
            else:
                chosen.append(self._searched(cell, cell.entry.search, fusion, selection, split, on_step))
        return chosen

    def _routed(self, cell: Cell, fusion: Fusion, on_step: OnStep) -> Fused:
        """Return the routed adapter's scores: a router has no candidates."""
        settings = cell.entry.route
        assert settings is not None

        def step(done: int, total: int, loss: float) -> None:
            on_step(done, total, f"loss {loss:.4f}")

        adapter = self.router.made(cell, fusion, step)
        results = {"test": self.scoring.of_adapter(adapter, self._scored(cell), "test")}
        parameters = settings.model_dump(mode="json", exclude={"name"})
        return Fused(Candidate(cell, [], parameters), selection_of(settings), results)

    def _scored(self, cell: Cell) -> list[str]:
        """Return the tasks on whose test rows a fusion is scored."""
        return [task.name for task in self.recipe.tasks] if self.recipe.evaluation.others else list(cell.subset)

    def _rank(self, result: CellResult) -> tuple[float, float]:
        experts = self.baselines[result.split]
        scores = {task: one.score for task, one in result.results.items()}
        metrics = {task.name: task.metric for task in self.recipe.tasks}
        return rank_kept(scores, {task: experts[task].score for task in scores}, metrics), -result.loss

    def _searched(
        self, cell: Cell, settings: SearchSettings, fusion: Fusion, selection: str, split: str, on_step: OnStep
    ) -> Fused:
        found = self.searches.find(cell, settings, fusion, split, self.scoring, on_step)
        # The table contains scores on complete splits, so candidates that a search tried on some rows are left out.
        weights = list(found.tried) if settings.row_limit is None else []
        weights += [found.weights] if found.weights not in weights else []
        candidates = [Candidate(cell, w, cell.entry.parameters) for w in weights]
        tried = [score(candidate, fusion, cell.subset, split, self.scoring) for candidate in candidates]
        best = Candidate(cell, found.weights, cell.entry.parameters)
        return self._finished(best, fusion, selection, on_step, tried, found)

    def _finished(
        self,
        candidate: Candidate,
        fusion: Fusion,
        selection: str,
        on_step: OnStep,
        tried: Sequence[CellResult] = (),
        found: Found | None = None,
    ) -> Fused:
        cell = candidate.cell
        scored = {"test": self._scored(cell)} | ({"validation": list(cell.subset)} if selection == "validation" else {})
        if cell.entry.polish is None:
            results = {split: score(candidate, fusion, t, split, self.scoring).results for split, t in scored.items()}
            return Fused(candidate, selection, results, tuple(tried), found)
        start = score(candidate, fusion, cell.subset, "test", self.scoring).results

        def step(done: int, total: int, loss: float) -> None:
            on_step(done, total, f"divergence {loss:.4f}")

        adapter = self.polisher.polished(candidate, fusion, step)
        results = {split: self.scoring.of_adapter(adapter, t, split) for split, t in scored.items()}
        info = adapter.metadata.polished
        curves = {n: v for n, v in self.polisher.record(candidate, fusion).items() if n != "seconds"}  # would differ
        record = {**curves, "polished": info and info.model_dump(mode="json")}
        record["scores"] = {n: [start[n].score, results["test"][n].score] for n in cell.subset}
        return Fused(candidate, selection, results, tuple(tried), found, record)


def _show(progress: Progress, cells_done: int, what: str, done: int, total: int, detail: str) -> None:
    """Show a step of a search within its cell: a search can take minutes."""
    progress.update(cells_done, f"{what} · {done} of {total}, {detail}")


def _listed(cell: Cell) -> list[Candidate]:
    """Return the entry's grid: one candidate if it has no lists."""
    entry, count = cell.entry, len(cell.subset)
    weights: Any = get(entry.method).default_weight if entry.weights is None else entry.weights
    points = grid.candidates(weights, entry.parameters)
    return [Candidate(cell, [point.weight] * count, dict(point.parameters)) for point in points]


def _named(cell: Cell) -> str:
    return f"{cell.mode} · {cell.entry.label} · {cell.space} · {'+'.join(cell.subset)}"
