"""Stage two: every subset, space and method; coefficients selected on validation, scored on test.

For one (mode, space, subset, entry) the candidates are the entry's grid, or the points that its search visits.
Selection looks at the mean over the subset's tasks of score / expert of the same mode, on the validation split
(``validation``), or on test itself (``oracle``); the lower mean loss breaks ties. Where nothing is chosen, the
entry has one candidate and its selection is called ``given``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.adapters.kinds import KINDS
from tangora.config.recipe import FusionEntry, Recipe
from tangora.evaluation.candidates import candidate_key, linear_coefficients
from tangora.evaluation.evaluator import Evaluator, Result
from tangora.evaluation.results import Outcome
from tangora.fusion.contract import space_of
from tangora.modes.contract import mode_of
from tangora.progress import Progress
from tangora.runs.subsets import choose_subsets

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.coefficients.found import Found
    from tangora.fusion.fusion import Fusion
    from tangora.fusion.statistics import Statistics
    from tangora.fusion.weights import WeightTable
    from tangora.runs.stages.columns import ColumnStore
    from tangora.runs.stages.search import Searches

__all__ = ["CANDIDATE_COLUMNS", "Cell", "Fused", "FusionStage", "cells"]

CANDIDATE_COLUMNS = [
    "mode", "method", "space", "subset", "split", "weights", "parameters", "task", "score", "loss",
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One place in the comparison, before selection."""

    mode: str
    space: str
    subset: tuple[str, ...]
    entry: FusionEntry


@dataclass(frozen=True)
class Fused:
    """What a cell came to, with what is needed to make the adapter again.

    Attributes:
        weights: one per task of the subset, or site -> one per task.
        found: by a search that looks at rows: how good the weights are known to be.
    """

    cell: Cell
    selection: str
    weights: WeightTable
    parameters: Mapping[str, Any]
    outcome: Outcome
    found: Found | None = None


def cells(recipe: Recipe) -> Iterator[Cell]:
    """Every (mode, space, subset, entry) of a recipe; full fine-tuning has no factors, which some spaces need."""
    subsets = choose_subsets([t.name for t in recipe.tasks], recipe.fusion.subsets, recipe.seed)
    mentioned = dict.fromkeys(space for entry in recipe.fusion.methods for space in entry.spaces)
    spaces = sorted(mentioned, key=lambda space: space != "delta")
    for mode, settings in recipe.modes.items():
        for space in spaces:
            if space_of(space).needs_factors and not KINDS[mode_of(settings).kind].has_factors:
                continue
            entries = [e for e in recipe.fusion.methods if space in e.spaces and mode in (e.modes or [mode])]
            for subset in subsets:
                for entry in entries:
                    if len(subset) in (entry.sizes or [len(subset)]):
                        yield Cell(mode, space, subset, entry)


@dataclass
class FusionStage:
    """Scores cells one after the other.

    Args:
        recipe: what to compare.
        experts: mode -> task -> adapter.
        evaluator: knows base and tasks; remembers scores.
        baselines: (mode, split) -> task -> result of that mode's expert on its own task.
        statistics: mode -> task -> those of the expert, for methods that need them.
        searches: find coefficients on rows.
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
    candidates: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    _fusions: dict[tuple[str, str], Fusion] = field(default_factory=dict, repr=False)
    _current: tuple[Any, Fusion] | None = field(default=None, repr=False)

    def run(self) -> list[Fused]:
        """Every cell, selected and scored."""
        listed = list(cells(self.recipe))
        self.progress.begin("fuse and score", len(listed))
        fused: list[Fused] = []
        for cell in listed:
            fused += self.score(cell)
            self.progress.advance(detail=f"{cell.mode} · {cell.entry.label} · {cell.space} · {len(cell.subset)} tasks")
        self.progress.end()
        return fused

    def score(self, cell: Cell) -> list[Fused]:
        """The chosen candidate of one cell for each way of selecting, scored on every task's test rows."""
        fusion = self._fusion(cell)
        grid = _grid(cell.entry, len(cell.subset))
        if cell.entry.search is None and len(grid) == 1:
            return [self._finish(cell, fusion, "given", *grid[0])]
        chosen = []
        for selection in self.recipe.fusion.selection:
            split = "test" if selection == "oracle" else "validation"
            weights, parameters = grid[0]
            found = None
            if cell.entry.search == "lorahub":
                weights = self._lorahub(cell, fusion, split)
            elif cell.entry.search is not None:
                found = self._found(cell, fusion, split, parameters)
                weights = found.weights
            else:
                weights, parameters = self._pick(cell, fusion, split, grid)
            chosen.append(self._finish(cell, fusion, selection, weights, parameters, found))
        return chosen

    def make(self, fused: Fused) -> Adapter:
        """The adapter of a scored cell."""
        made = self._fusion(fused.cell).merge(fused.cell.entry.method, fused.weights, dict(fused.parameters))
        return made if fused.found is None else made.with_selection(fused.found.told())

    def _fusion(self, cell: Cell) -> Fusion:
        from tangora.fusion.fusion import Fusion

        key = (cell.mode, cell.space)
        if key not in self._fusions:
            self._fusions.clear()  # one mode and space at a time: stacked full models are large
            adapters = self.experts[cell.mode]
            names = [t.name for t in self.recipe.tasks]
            known = list(self.statistics.get(cell.mode, {}).values())
            self._fusions[key] = Fusion(
                [adapters[n] for n in names], cell.space, seed=self.recipe.seed, names=names, statistics=known
            )
        if self._current is None or self._current[0] != (key, cell.subset):
            order = {t.name: i for i, t in enumerate(self.recipe.tasks)}
            self._current = ((key, cell.subset), self._fusions[key].subset([order[n] for n in cell.subset]))
        return self._current[1]

    def _pick(
        self, cell: Cell, fusion: Fusion, split: str, grid: Sequence[tuple[WeightTable, dict[str, Any]]]
    ) -> tuple[WeightTable, dict[str, Any]]:
        ranks = []
        for weights, parameters in grid:
            results = self._results(cell, fusion, split, weights, parameters)
            ranks.append((self._kept(cell, split, results), -float(np.mean([r.loss for r in results.values()]))))
        return grid[max(range(len(grid)), key=ranks.__getitem__)]

    def _kept(self, cell: Cell, split: str, results: Mapping[str, Result]) -> float:
        experts = self.baselines[cell.mode, split]
        return float(
            np.mean([r.score / experts[t].score if experts[t].score > 0 else r.score for t, r in results.items()])
        )

    def _found(self, cell: Cell, fusion: Fusion, split: str, parameters: dict[str, Any]) -> Found:
        assert self.searches is not None
        found = self.searches.find(cell.entry, cell.mode, cell.subset, fusion, split)
        self._results(cell, fusion, split, found.weights, parameters)
        place = {"mode": cell.mode, "method": cell.entry.label, "space": cell.space, "subset": "+".join(cell.subset)}
        self.found.append({**place, **found.told(), "weights": found.weights})
        return found

    def _lorahub(self, cell: Cell, fusion: Fusion, split: str) -> list[float]:
        from tangora.coefficients import lorahub

        entry, parameters = cell.entry, dict(cell.entry.parameters)

        def objective(weights: Sequence[float]) -> float:
            results = self._results(cell, fusion, split, [float(w) for w in weights], parameters)
            return float(np.mean([r.loss for r in results.values()]))

        found = lorahub.search(
            objective,
            len(cell.subset),
            budget=entry.budget,
            bound=entry.bound or lorahub.BOUND,
            penalty=entry.penalty,
            seed=self.recipe.seed,
        )
        return [float(w) for w in found.weights]

    def _results(
        self, cell: Cell, fusion: Fusion, split: str, weights: WeightTable, parameters: dict[str, Any]
    ) -> dict[str, Result]:
        results = self._evaluate(cell, fusion, weights, parameters, cell.subset, split)
        for task, result in results.items():
            row = (cell.mode, cell.entry.label, cell.space, "+".join(cell.subset), split, weights, parameters)
            self.candidates.append(dict(zip(CANDIDATE_COLUMNS, (*row, task, result.score, result.loss), strict=True)))
        return results

    def _finish(
        self,
        cell: Cell,
        fusion: Fusion,
        selection: str,
        weights: WeightTable,
        parameters: dict[str, Any],
        found: Found | None = None,
    ) -> Fused:
        everything = [t.name for t in self.recipe.tasks]
        results = {"test": self._evaluate(cell, fusion, weights, parameters, everything, "test")}
        if selection == "validation":
            results["validation"] = self._evaluate(cell, fusion, weights, parameters, cell.subset, "validation")
        coefficients = {"weights": weights, **parameters}
        outcome = Outcome(cell.mode, cell.entry.label, cell.space, cell.subset, selection, coefficients, results)
        return Fused(cell, selection, weights, parameters, outcome, found)

    def _evaluate(
        self,
        cell: Cell,
        fusion: Fusion,
        weights: WeightTable,
        parameters: dict[str, Any],
        tasks: Sequence[str],
        split: str,
    ) -> dict[str, Result]:
        linear = linear_coefficients(cell.entry.method, weights, parameters)
        if linear is not None and self.columns is not None and self.columns.scores(cell.mode):
            return self.columns.results(cell.mode, tasks, split, dict(zip(cell.subset, linear, strict=True)))
        make: Callable[[], Adapter] = lambda: fusion.merge(cell.entry.method, weights, parameters)  # noqa: E731
        key = candidate_key(fusion, cell.entry.method, weights, parameters, self.recipe.seed)
        return self.evaluator.evaluate(key, make, tasks, split)


def _grid(entry: FusionEntry, tasks: int) -> list[tuple[WeightTable, dict[str, Any]]]:
    from tangora.coefficients import grid
    from tangora.methods import get

    default = get(entry.method).default_weight
    weights: Any = 1.0 if entry.search else default if entry.weights is None else entry.weights
    return [([c.weight] * tasks, dict(c.parameters)) for c in grid.candidates(weights, entry.parameters)]
