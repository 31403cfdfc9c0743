"""The tables of a run.

RUN/scores.csv, candidates.csv, summary.json, similarity.json, cache/rows.json; RUN/searches.json, polish.json and
RUN/cache/predictions.json unless they would be empty; with several seeds RUN/scores-by-seed.csv
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tangora.analysis.cosine import cosine_matrix
from tangora.config.recipe import Recipe
from tangora.evaluation import results as scores
from tangora.evaluation import seeds
from tangora.evaluation.predictions import write_site_predictions
from tangora.evaluation.tables import BY_SEED, COLUMNS, SEED_COLUMNS
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
    from tangora.tasks import Task

__all__ = ["TablesJob", "tables_job"]


@dataclass(frozen=True)
class TablesJob(Job):
    """Write the outcomes of all scoring jobs as tables, with intervals."""

    kind: ClassVar[str] = "tables"
    stage: ClassVar[str] = "tables"

    @property
    def about(self) -> str:
        """The name of the output."""
        return "tables"

    def run(self, context: Context) -> None:
        """Write one table after the other."""
        outcomes, progress = self._outcomes(context), context.progress
        progress.begin(self.label, 3)
        _write_scores(context, outcomes)
        _write_rows(context, {seed: self._scored(context, seed) for seed in outcomes})
        progress.advance(detail="scores.csv")
        _write_candidates(context, outcomes)
        progress.advance(detail="candidates.csv")
        _write_similarity(context)
        progress.advance(detail="similarity.json")
        progress.end()

    def files(self, context: Context) -> list[Path]:
        """Return the tables that every run has."""
        names = ["scores.csv", "summary.json", "candidates.csv", "similarity.json"]
        names += [BY_SEED] if context.recipe.seeds else []
        return [*(context.run / name for name in names), context.run / FILE]

    def _outcomes(self, context: Context) -> dict[int, Outcomes]:
        """Return seed -> its outcomes, with those that are the same with every seed."""
        return {
            seed: joined(job.outcomes(context) for job in self._scored(context, seed))
            for seed in context.recipe.every_seed
        }

    def _scored(self, context: Context, seed: int) -> list[ScoresJob]:
        jobs = (context.plan[key] for key in self.inputs)
        return [job for job in jobs if isinstance(job, ScoresJob) and job.seed in (None, seed)]


def _write_scores(context: Context, outcomes: Mapping[int, Outcomes]) -> None:
    recipe, tasks = context.recipe, list(context.tasks.values())
    bootstrap = scores.Bootstrap(tasks, recipe.evaluation.bootstrap, recipe.first_seed)
    chosen = {seed: of_seed.chosen for seed, of_seed in outcomes.items()}
    by_seed = seeds.rows_by_seed(chosen, tasks, bootstrap)
    rows, several = seeds.rows_over_seeds(by_seed, bootstrap), len(by_seed) > 1
    scores.write_csv(context.run / "scores.csv", rows, [*COLUMNS, *SEED_COLUMNS] if several else COLUMNS)
    if several:
        each = [{"seed": seed, **vars(one.row)} for seed, of_seed in by_seed.items() for one in of_seed]
        scores.write_csv(context.run / BY_SEED, each, ["seed", *COLUMNS])
    else:
        (context.run / BY_SEED).unlink(missing_ok=True)  # of an earlier run of more seeds
    summary: dict[str, Any] = {"rows": seeds.summary(chosen, tasks, bootstrap)}
    if several:
        summary["seeds"] = list(by_seed)
    if warnings := list(seeds.warned({seed: _warnings(of_seed, tasks) for seed, of_seed in chosen.items()})):
        summary["warnings"] = warnings
    write_json(context.run / "summary.json", summary)


def _warnings(chosen: Sequence[scores.Outcome], tasks: Sequence[Task]) -> list[str]:
    measured = {_name(one): one.results["test"] for one in chosen if "test" in one.results}
    return score_warnings(measured, tasks, "test", cut=("train", "validation", "test"))


def _write_rows(context: Context, scored: Mapping[int, Sequence[Job]]) -> None:
    recipe = context.recipe
    keys = {seed: [job.key for job in jobs] for seed, jobs in scored.items()}
    write_scored_rows(context.run, list(context.tasks.values()), keys, recipe.first_seed, recipe.evaluation.bootstrap)


def _name(outcome: scores.Outcome) -> str:
    parts = (outcome.mode, outcome.method, outcome.space, "+".join(outcome.subset), outcome.selection)
    return " ".join(part for part in parts if part not in ("", "-", "none"))


def _write_candidates(context: Context, outcomes: Mapping[int, Outcomes]) -> None:
    """Write what coefficients were chosen from; with several seeds, each row with its seed."""

    def listed(rows: Callable[[Outcomes], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        several = len(outcomes) > 1
        return [
            {**({"seed": seed} if several else {}), **row}
            for seed, of_seed in outcomes.items()
            for row in rows(of_seed)
        ]

    candidates = [{**row, "weights": json.dumps(row["weights"]), "parameters": json.dumps(row["parameters"])}
                  for row in listed(lambda one: one.candidates)]  # fmt: skip
    columns = [*(["seed"] if len(outcomes) > 1 else []), *CANDIDATE_COLUMNS]
    scores.write_csv(context.run / "candidates.csv", candidates, columns)
    if searches := listed(lambda one: one.searches):
        write_json(context.run / "searches.json", {"rows": searches})
    if polishes := listed(lambda one: one.polishes):
        write_json(context.run / "polish.json", {"rows": polishes})
    linear = {mode: scored_on_columns(context.recipe, context.sources, mode) for mode in context.recipe.modes}
    first = outcomes[context.recipe.first_seed]  # the explorer shows its columns
    write_site_predictions(context.run, first.chosen, lambda mode: linear.get(mode, False))


def _write_similarity(context: Context) -> None:
    """Write the cosines of every two task vectors; with several seeds their means and standard deviations."""
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    for seed in context.recipe.every_seed:
        for mode, of_mode in context.at(seed).experts.items():
            cosine = cosine_matrix([adapter.task_vector for adapter in of_mode.values()])
            found.setdefault(mode, []).append(cosine.numpy().astype(np.float64))
    similarity: dict[str, dict[str, Any]] = {}
    for mode, matrices in found.items():
        similarity[mode] = {"tasks": context.names, "cosine": np.mean(matrices, axis=0).tolist()}
        if len(matrices) > 1:
            similarity[mode]["cosine_sd"] = np.std(matrices, axis=0, ddof=1).tolist()
    write_json(context.run / "similarity.json", similarity)


def tables_job(recipe: Recipe, before: Sequence[Job]) -> TablesJob:
    """Return the job that reads every expert and every outcome."""
    inputs = tuple(job.key for job in before)
    code = source_digest(seeds, cosine_matrix, write_site_predictions, score_warnings, write_scored_rows)
    key = digest(["tables-1", code, inputs, recipe.evaluation.bootstrap, *recipe.every_seed])
    names = tuple(task.name for task in recipe.tasks)
    return TablesJob(key, names, inputs, Resources(float(recipe.evaluation.bootstrap * len(before)), device=False))
