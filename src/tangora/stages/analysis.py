"""A stage after a run: analyses of its experts, cached piece by piece, and resumed.

    RUN/analysis/signs.json      per mode: sign conflicts between every two experts
    RUN/analysis/angles.json     per mode: overlap of the subspaces that their updates write to and read from
    RUN/analysis/planes.json     per mode and pair: disentanglement error, joint loss and scores on a grid of (λ₁, λ₂)

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

from tangora._io import write_json
from tangora.analysis.plane import grid
from tangora.progress import Progress
from tangora.stages.analysis_plan import RANK, Piece, Plan

if TYPE_CHECKING:
    from tangora.adapter import Adapter
    from tangora.evaluate import Evaluator

__all__ = ["analyze"]


def analyze(plan: Plan, progress: Progress | None = None) -> Path:
    """Compute what is missing, write it piece by piece, and build the report again; returns the report's path.

    Raises:
        OutputError: the folder is in use by another run, or cannot be written.
        TangoraError: whatever is wrong with adapters, base or data.
    """
    from tangora import report
    from tangora.run_folder import locked

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

    def measure(self, piece: Piece) -> dict[str, Any]:
        from tangora.stages import measures

        experts = {task: self.experts(piece.mode)[task] for task in piece.tasks}
        if piece.kind == "planes":
            return self._plane(piece, experts)
        self.progress.begin(f"{piece.kind} · {piece.mode}", 1)
        found = measures.signs(experts) if piece.kind == "signs" else measures.angles(experts, RANK)
        self.progress.advance()
        self.progress.end()
        return found

    def experts(self, mode: str) -> dict[str, Adapter]:
        from tangora.adapter import load

        if mode != self._mode:
            self._experts.clear()
            self._experts = {task: load(self.plan.run / "adapters" / mode / task) for task in self.plan.tasks}
            self._mode = mode
        return self._experts

    def _plane(self, piece: Piece, experts: Mapping[str, Adapter]) -> dict[str, Any]:
        from tangora.stages import measures

        settings, pair = self.plan.settings, (piece.tasks[0], piece.tasks[1])
        coefficients = grid(settings.points, settings.margin)
        answer = measures.by_forward_passes(self._evaluator, experts, pair, settings.split, self.plan.recipe.seed)
        self.progress.begin(f"plane · {piece.mode} · {'+'.join(pair)}", len(coefficients) ** 2)
        found = measures.plane(answer, pair, coefficients, self.progress.advance)
        self.progress.end()
        return found

    @cached_property
    def _evaluator(self) -> Evaluator:
        from tangora.evaluate import Evaluator, ScoreStore
        from tangora.run import prepare
        from tangora.stages.measures import limited

        recipe, settings = self.plan.recipe, self.plan.settings
        base, tasks = prepare(recipe, self.progress)
        small = [limited(task, settings.split, settings.rows, recipe.seed) for task in tasks]
        store = ScoreStore(self.plan.run / "cache" / "analysis.jsonl")
        return Evaluator(base, small, batch_size=recipe.evaluation.batch_size, store=store)


def _place(plan: Plan, entry: Mapping[str, Any]) -> tuple[int, list[int]]:
    return list(plan.recipe.modes).index(entry["mode"]), [plan.tasks.index(task) for task in entry["tasks"]]
