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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora import report
from tangora.analysis.plane import grid
from tangora.evaluation.evaluator import ScoreStore
from tangora.progress import Progress
from tangora.runs.context import Context
from tangora.runs.folder import locked
from tangora.runs.stages import measures
from tangora.runs.stages.analysis_plan import PATH, RANK, AnalysisPlan, Piece
from tangora.support.files import write_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.analysis.plane import Answer
    from tangora.tasks import Task

__all__ = ["analyze"]


def analyze(plan: AnalysisPlan, progress: Progress | None = None) -> Path:
    """Compute what is missing, write it piece by piece, and build the report again; return the report's path.

    Raises:
        OutputError: the folder is in use by another run, or cannot be written.
        TangoraError: whatever is wrong with adapters, base or data.
    """
    context = Context(plan.run, plan.recipe, progress or Progress())
    with locked(plan.run):
        for piece in plan.missing:
            about = {"mode": piece.mode, "tasks": list(piece.tasks), "experts": plan.experts(piece.mode, piece.tasks)}
            measured = _measure(plan, context, piece)
            entry = {**about, "key": piece.key, "settings": plan.settings.of(piece.kind), **measured}
            entries = [e for e in plan.entries(piece.kind) if e["key"] != piece.key] + [entry]
            entries.sort(key=lambda e: _position(plan, e))
            write_json(plan.run / "analysis" / f"{piece.kind}.json", {"entries": entries})
        return report.build(plan.run)


def _measure(plan: AnalysisPlan, context: Context, piece: Piece) -> dict[str, Any]:
    """The numbers of one piece."""
    progress = context.progress
    experts = {task: context.experts[piece.mode][task] for task in piece.tasks}
    if piece.kind == "planes":
        coefficients = grid(plan.settings.points, plan.settings.margin)
        answer = _answer(plan, context, piece, experts)
        progress.begin(f"plane · {piece.mode} · {'+'.join(piece.tasks)}", len(coefficients) ** 2)
        measured = measures.plane(answer, (piece.tasks[0], piece.tasks[1]), coefficients, progress.advance)
    elif piece.kind == "linearity":
        (name,) = piece.tasks
        small, size = _small(plan, context, name), context.recipe.evaluation.batch_size
        progress.begin(f"linearity · {piece.mode} · {name}", len(PATH))
        split = plan.settings.split
        measured = measures.linearity(context.base, small, split, experts[name], PATH, size, progress.advance)
    else:
        progress.begin(f"{piece.kind} · {piece.mode}", 1)
        measured = measures.signs(experts) if piece.kind == "signs" else measures.angles(experts, RANK)
        progress.advance()
    progress.end()
    return measured


def _answer(plan: AnalysisPlan, context: Context, piece: Piece, experts: Mapping[str, Adapter]) -> Answer:
    """How the fused model answers at a point of a plane: from columns, or by forward passes."""
    settings, seed = plan.settings, plan.recipe.seed
    if plan.linear(piece.mode):
        rows = {name: measures.picked(context.task(name), settings.split, settings.rows, seed) for name in piece.tasks}
        return measures.by_columns(context.columns, piece.mode, piece.tasks, settings.split, rows)
    small = [_small(plan, context, name) for name in context.names]
    evaluator = context.evaluator(ScoreStore(plan.run / "cache" / "analysis.jsonl"), small)
    return measures.by_forward_passes(evaluator, experts, piece.tasks, settings.split, seed)


def _small(plan: AnalysisPlan, context: Context, name: str) -> Task:
    settings = plan.settings
    return measures.limited(context.task(name), settings.split, settings.rows, plan.recipe.seed)


def _position(plan: AnalysisPlan, entry: Mapping[str, Any]) -> tuple[int, list[int]]:
    return list(plan.recipe.modes).index(entry["mode"]), [plan.tasks.index(task) for task in entry["tasks"]]
