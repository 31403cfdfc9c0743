"""Analyses of the experts of a finished run. Each measurement is cached, so that an analysis can resume.

    RUN/analysis/signs.json      per mode: sign conflicts between every two experts
    RUN/analysis/angles.json     per mode: overlap of the column and row spaces of their updates
    RUN/analysis/planes.json     per mode and pair: disentanglement error, joint loss and scores on a grid of (λ₁, λ₂)
    RUN/analysis/linearity.json  per mode and task: the network against its expansion along the path to the expert

Each file is ``{"entries": [{"mode", "tasks", "experts", "key", "settings", ...}]}``; a key is a hash of experts and
of every setting that determines the numbers. An entry with a valid key is not computed again; others are dropped.
Within a plane, every scored model is kept in RUN/cache/analysis.jsonl.
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
from tangora.runs.stages.analysis_plan import PATH, RANK, AnalysisPlan, Measurement
from tangora.support.files import write_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.analysis.plane import Answer
    from tangora.tasks import Task

__all__ = ["analyze"]


def analyze(plan: AnalysisPlan, progress: Progress | None = None) -> Path:
    """Compute and write the missing measurements one by one, rebuild the report, and return its path.

    Raises:
        OutputError: the folder is in use by another run, or cannot be written.
        TangoraError: an adapter, the base or the data are invalid.
    """
    context = Context(plan.run, plan.recipe, progress or Progress())
    with locked(plan.run):
        for measurement in plan.missing:
            scope = {
                "mode": measurement.mode,
                "tasks": list(measurement.tasks),
                "experts": plan.experts(measurement.mode, measurement.tasks),
            }
            values = _measure(plan, context, measurement)
            entry = {**scope, "key": measurement.key, "settings": plan.settings.of(measurement.kind), **values}
            entries = [e for e in plan.entries(measurement.kind) if e["key"] != measurement.key] + [entry]
            entries.sort(key=lambda e: _position(plan, e))
            write_json(plan.run / "analysis" / f"{measurement.kind}.json", {"entries": entries})
        return report.build(plan.run)


def _measure(plan: AnalysisPlan, context: Context, measurement: Measurement) -> dict[str, Any]:
    """Return the numbers of one measurement."""
    progress = context.progress
    experts = {task: context.experts[measurement.mode][task] for task in measurement.tasks}
    if measurement.kind == "planes":
        coefficients = grid(plan.settings.points, plan.settings.margin)
        answer = _answer(plan, context, measurement, experts)
        progress.begin(f"plane · {measurement.mode} · {'+'.join(measurement.tasks)}", len(coefficients) ** 2)
        values = measures.plane(answer, (measurement.tasks[0], measurement.tasks[1]), coefficients, progress.advance)
    elif measurement.kind == "linearity":
        (name,) = measurement.tasks
        small, size = _small(plan, context, name), context.recipe.evaluation.batch_size
        progress.begin(f"linearity · {measurement.mode} · {name}", len(PATH))
        split = plan.settings.split
        values = measures.linearity(context.base, small, split, experts[name], PATH, size, progress.advance)
    else:
        progress.begin(f"{measurement.kind} · {measurement.mode}", 1)
        values = measures.signs(experts) if measurement.kind == "signs" else measures.angles(experts, RANK)
        progress.advance()
    progress.end()
    return values


def _answer(plan: AnalysisPlan, context: Context, measurement: Measurement, experts: Mapping[str, Adapter]) -> Answer:
    """Return a function that scores the fused model at a point of a plane, from columns or by forward passes."""
    settings, seed = plan.settings, plan.recipe.seed
    if plan.linear(measurement.mode):
        rows = {
            name: measures.picked(context.task(name), settings.split, settings.rows, seed) for name in measurement.tasks
        }
        return measures.by_columns(context.columns, measurement.mode, measurement.tasks, settings.split, rows)
    small = [_small(plan, context, name) for name in context.names]
    evaluator = context.evaluator(ScoreStore(plan.run / "cache" / "analysis.jsonl"), small)
    return measures.by_forward_passes(evaluator, experts, measurement.tasks, settings.split, seed)


def _small(plan: AnalysisPlan, context: Context, name: str) -> Task:
    settings = plan.settings
    return measures.limited(context.task(name), settings.split, settings.rows, plan.recipe.seed)


def _position(plan: AnalysisPlan, entry: Mapping[str, Any]) -> tuple[int, list[int]]:
    return list(plan.recipe.modes).index(entry["mode"]), [plan.tasks.index(task) for task in entry["tasks"]]
