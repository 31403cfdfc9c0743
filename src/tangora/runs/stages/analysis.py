"""A stage after a run: analyses of its experts, cached piece by piece, and resumed.

    RUN/analysis/signs.json      per mode: sign conflicts between every two experts
    RUN/analysis/angles.json     per mode: overlap of the subspaces that their updates write to and read from
    RUN/analysis/planes.json     per mode and pair: disentanglement error, joint loss and scores on a grid of (λ₁, λ₂)
    RUN/analysis/linearity.json  per mode and task: the network against its expansion along the path to the expert

Each file is ``{"entries": [{"mode", "tasks", "experts", "key", "settings", ...}]}``; a key is a hash of experts and
of every setting that decides the numbers. An entry whose key still holds is not computed again, and one whose key does
not is dropped. Within a plane every scored model is kept in RUN/cache/analysis.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.analysis.plane import grid
from tangora.progress import Progress
from tangora.runs.stages.analysis_plan import PATH, RANK, Piece, Plan
from tangora.support.files import write_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.analysis.plane import Answer
    from tangora.evaluation.evaluator import Evaluator
    from tangora.tasks import Base, Task

__all__ = ["analyze"]


def analyze(plan: Plan, progress: Progress | None = None) -> Path:
    """Compute what is missing, write it piece by piece, and build the report again; returns the report's path.

    Raises:
        OutputError: the folder is in use by another run, or cannot be written.
        TangoraError: whatever is wrong with adapters, base or data.
    """
    from tangora import report
    from tangora.runs.folder import locked

    bench = _Bench(plan, progress or Progress())
    with locked(plan.run):
        for piece in plan.missing:
            about = {"mode": piece.mode, "tasks": list(piece.tasks), "experts": plan.experts(piece.mode, piece.tasks)}
            entry = {**about, "key": piece.key, "settings": plan.settings.of(piece.kind), **bench.measure(piece)}
            entries = [e for e in plan.entries(piece.kind) if e["key"] != piece.key] + [entry]
            entries.sort(key=lambda e: _place(plan, e))
            write_json(plan.run / "analysis" / f"{piece.kind}.json", {"entries": entries})
        return report.build(plan.run)


@dataclass
class _Bench:
    """Base, data and experts, each loaded when it is first needed; one mode's experts at a time."""

    plan: Plan
    progress: Progress
    _mode: str = ""
    _experts: dict[str, Adapter] = field(default_factory=dict)
    _evaluator: Evaluator | None = None

    def measure(self, piece: Piece) -> dict[str, Any]:
        from tangora.runs.stages import measures

        experts = {task: self.experts(piece.mode)[task] for task in piece.tasks}
        what, steps = " · ".join([piece.kind, piece.mode]), 1
        if piece.kind == "planes":
            what, steps = f"plane · {piece.mode} · {'+'.join(piece.tasks)}", len(self._coefficients) ** 2
        elif piece.kind == "linearity":
            what, steps = f"{what} · {piece.tasks[0]}", len(PATH)
        if piece.kind in {"planes", "linearity"}:
            _ = self._loaded  # has a bar of its own
        self.progress.begin(what, steps)
        if piece.kind == "planes":
            pair, answer = (piece.tasks[0], piece.tasks[1]), self._answer(piece, experts)
            found = measures.plane(answer, pair, self._coefficients, self.progress.advance)
        elif piece.kind == "linearity":
            found = self._linearity(piece, experts)
        else:
            found = measures.signs(experts) if piece.kind == "signs" else measures.angles(experts, RANK)
            self.progress.advance()
        self.progress.end()
        return found

    def experts(self, mode: str) -> dict[str, Adapter]:
        from tangora.adapters.adapter import load

        if mode != self._mode:
            self._experts.clear()
            self._experts = {task: load(self.plan.run / "adapters" / mode / task) for task in self.plan.tasks}
            self._mode = mode
        return self._experts

    def _answer(self, piece: Piece, experts: Mapping[str, Adapter]) -> Answer:
        from tangora.evaluation.evaluator import Evaluator, ScoreStore
        from tangora.runs.stages import measures
        from tangora.runs.stages.columns import ColumnStore

        plan, settings, (base, tasks) = self.plan, self.plan.settings, self._loaded
        size, seed = plan.recipe.evaluation.batch_size, plan.recipe.seed
        if plan.linear(piece.mode):
            modes, folder = {piece.mode: self.experts(piece.mode)}, plan.run / "cache" / "columns"
            rows = {name: measures.picked(tasks[name], settings.split, settings.rows, seed) for name in piece.tasks}
            store = ColumnStore(base, tasks, modes, folder, size)
            return measures.by_columns(store, piece.mode, piece.tasks, settings.split, rows)
        if self._evaluator is None:
            scores = ScoreStore(plan.run / "cache" / "analysis.jsonl")
            self._evaluator = Evaluator(base, [self._small(name) for name in tasks], batch_size=size, store=scores)
        return measures.by_forward_passes(self._evaluator, experts, piece.tasks, settings.split, seed)

    def _linearity(self, piece: Piece, experts: Mapping[str, Adapter]) -> dict[str, Any]:
        from tangora.runs.stages.measures import linearity

        (name,), split, size = piece.tasks, self.plan.settings.split, self.plan.recipe.evaluation.batch_size
        return linearity(self._loaded[0], self._small(name), split, experts[name], PATH, size, self.progress.advance)

    def _small(self, name: str) -> Task:
        from tangora.runs.stages.measures import limited

        settings = self.plan.settings
        return limited(self._loaded[1][name], settings.split, settings.rows, self.plan.recipe.seed)

    @cached_property
    def _coefficients(self) -> tuple[float, ...]:
        return grid(self.plan.settings.points, self.plan.settings.margin)

    @cached_property
    def _loaded(self) -> tuple[Base, dict[str, Task]]:
        from tangora.runs.runner import prepare

        base, tasks = prepare(self.plan.recipe, self.progress)
        return base, {task.name: task for task in tasks}


def _place(plan: Plan, entry: Mapping[str, Any]) -> tuple[int, list[int]]:
    return list(plan.recipe.modes).index(entry["mode"]), [plan.tasks.index(task) for task in entry["tasks"]]
