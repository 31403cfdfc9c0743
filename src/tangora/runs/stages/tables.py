"""The tables of a run.

RUN/scores.csv, candidates.csv, summary.json, similarity.json, cache/rows.json; RUN/searches.json, polish.json and
RUN/cache/predictions.json unless they would be empty
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tangora.analysis.cosine import cosine_matrix
from tangora.config.recipe import Recipe
from tangora.evaluation import results as scores
from tangora.evaluation.predictions import write_site_predictions
from tangora.evaluation.warnings import score_warnings
from tangora.runs.jobs import Job, Resources
from tangora.runs.stages.column_files import scored_on_columns
from tangora.runs.stages.fusion import CANDIDATE_COLUMNS
from tangora.runs.stages.outcomes import Outcomes, joined
from tangora.runs.stages.scored_rows import FILE, write_scored_rows
from tangora.runs.stages.scores import ScoresJob
from tangora.support.files import digest, write_json
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.runs.context import Context

__all__ = ["TablesJob", "tables_job"]


@dataclass(frozen=True)
class TablesJob(Job):
    """Write the outcomes of all scoring jobs as tables, with intervals."""

    kind: ClassVar[str] = "tables"
    stage: ClassVar[str] = "tables"

    @property
    def label(self) -> str:
        """The name of the output."""
        return "tables"

    def run(self, context: Context) -> None:
        """Write one table after the other."""
        outcomes, progress = self._outcomes(context), context.progress
        progress.begin(self.label, 3)
        _write_scores(context, outcomes)
        _write_rows(context, self.inputs)
        progress.advance(detail="scores.csv")
        _write_candidates(context, outcomes)
        progress.advance(detail="candidates.csv")
        _write_similarity(context)
        progress.advance(detail="similarity.json")
        progress.end()

    def files(self, context: Context) -> list[Path]:
        """Return the tables that every run has."""
        names = ("scores.csv", "summary.json", "candidates.csv", "similarity.json")
        return [*(context.run / name for name in names), context.run / FILE]

    def _outcomes(self, context: Context) -> Outcomes:
        jobs = (context.plan[key] for key in self.inputs)
        return joined(job.outcomes(context) for job in jobs if isinstance(job, ScoresJob))


def _write_scores(context: Context, outcomes: Outcomes) -> None:
    recipe, tasks = context.recipe, list(context.tasks.values())
    bootstrap = scores.Bootstrap(tasks, recipe.evaluation.bootstrap, recipe.seed)
    scores.write_csv(context.run / "scores.csv", scores.rows(outcomes.chosen, tasks, bootstrap))
    summary: dict[str, Any] = {"rows": scores.summary(outcomes.chosen, tasks, bootstrap)}
    measured = {_name(one): one.results["test"] for one in outcomes.chosen if "test" in one.results}
    if warnings := score_warnings(measured, tasks, "test", cut=("train", "validation", "test")):
        summary["warnings"] = warnings
    write_json(context.run / "summary.json", summary)


def _write_rows(context: Context, inputs: Sequence[str]) -> None:
    recipe, scored = context.recipe, [key for key in inputs if isinstance(context.plan[key], ScoresJob)]
    write_scored_rows(context.run, list(context.tasks.values()), scored, recipe.seed, recipe.evaluation.bootstrap)


def _name(outcome: scores.Outcome) -> str:
    parts = (outcome.mode, outcome.method, outcome.space, "+".join(outcome.subset), outcome.selection)
    return " ".join(part for part in parts if part not in ("", "-", "none"))


def _write_candidates(context: Context, outcomes: Outcomes) -> None:
    listed = [{**row, "weights": json.dumps(row["weights"]), "parameters": json.dumps(row["parameters"])}
              for row in outcomes.candidates]  # fmt: skip
    scores.write_csv(context.run / "candidates.csv", listed, CANDIDATE_COLUMNS)
    if outcomes.searches:
        write_json(context.run / "searches.json", {"rows": list(outcomes.searches)})
    if outcomes.polishes:
        write_json(context.run / "polish.json", {"rows": list(outcomes.polishes)})
    linear = {mode: scored_on_columns(context.recipe, context.sources, mode) for mode in context.recipe.modes}
    write_site_predictions(context.run, outcomes.chosen, lambda mode: linear.get(mode, False))


def _write_similarity(context: Context) -> None:
    similarity = {
        mode: {
            "tasks": list(of_mode),
            "cosine": cosine_matrix([adapter.task_vector for adapter in of_mode.values()]).tolist(),
        }
        for mode, of_mode in context.experts.items()
    }
    write_json(context.run / "similarity.json", similarity)


def tables_job(recipe: Recipe, before: Sequence[Job]) -> TablesJob:
    """Return the job that reads every expert and every outcome."""
    inputs = tuple(job.key for job in before)
    code = source_digest(scores, cosine_matrix, write_site_predictions, score_warnings, write_scored_rows)
    key = digest(["tables-1", code, inputs, recipe.evaluation.bootstrap, recipe.seed])
    names = tuple(task.name for task in recipe.tasks)
    return TablesJob(key, names, inputs, Resources(float(recipe.evaluation.bootstrap * len(before)), device=False))
