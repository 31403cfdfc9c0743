"""Jobs that score the base, each expert, and fusions in blocks of cells; each writes a file of outcomes.

    RUN/cache/outcomes/<key>.json   the result of a job: outcomes with their predictions, candidates, searches
    RUN/cache/scores/<key>.jsonl    every score that it measured, one per line, so that a killed job can resume
    RUN/cache/scores.jsonl          the archive: scores of earlier runs, plans and versions; see `fold`

A job reads the scores of the archive and of its input jobs, and measures the others. So its output does not depend on
which other jobs were done before or at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tangora.config.recipe import Recipe
from tangora.evaluation.candidates import Scoring
from tangora.evaluation.evaluator import Evaluator, Result, ScoreStore, scoring_key
from tangora.evaluation.results import Outcome
from tangora.runs.jobs import Job
from tangora.runs.stages.cells import Cell, cells
from tangora.runs.stages.column_files import scored_on_columns
from tangora.runs.stages.fusion import FusionStage, candidate_rows, polish_rows, search_rows
from tangora.runs.stages.outcomes import Outcomes, read_outcomes, write_outcomes
from tangora.runs.stages.search import Searches
from tangora.runs.stages.statistics import kinds_of

if TYPE_CHECKING:
    from tangora.runs.context import Context

__all__ = ["ExpertScoresJob", "FusionScoresJob", "ScoresJob", "ZeroShotJob", "fold"]


@dataclass(frozen=True)
class ScoresJob(Job):
    """A job with outcomes as its result."""

    stage: ClassVar[str] = "fuse and score"

    def files(self, context: Context) -> list[Path]:
        """Return the file of outcomes."""
        return [context.run / "cache" / "outcomes" / f"{self.key}.json"]

    def outcomes(self, context: Context) -> Outcomes:
        """Return the outcomes of a job that is done."""
        return read_outcomes(self.files(context)[0])

    def write(self, context: Context, outcomes: Outcomes) -> None:
        """Write the outcomes."""
        write_outcomes(self.files(context)[0], outcomes)

    def evaluator(self, context: Context) -> Evaluator:
        """Return an evaluator that reuses the scores of the inputs, and keeps new ones in the job's own file."""
        inputs = [ScoreStore.read(_measured(context.run, key)) for key in self.inputs]
        return context.evaluator(ScoreStore(_measured(context.run, self.key), [context.archive, *inputs]))


@dataclass(frozen=True)
class ZeroShotJob(ScoresJob):
    """Score the unchanged base model on every task."""

    kind: ClassVar[str] = "zero-shot"

    @property
    def about(self) -> str:
        """The name of the base's score."""
        return "score · zero-shot"

    def run(self, context: Context) -> None:
        """Score on test and validation rows."""
        evaluator = self.evaluator(context)
        context.progress.begin(self.label, 2)
        results: dict[str, Mapping[str, Result]] = {}
        for split in ("test", "validation"):
            results[split] = evaluator.evaluate("zero_shot", lambda: None, self.tasks, split)
            context.progress.advance(detail=split)
        self.write(context, Outcomes([Outcome("-", "zero_shot", "", (), "none", {}, results)], [None]))
        context.progress.end()


@dataclass(frozen=True)
class ExpertScoresJob(ScoresJob):
    """Score an expert on the test rows of its tasks: every task, or its own alone; and on its own validation rows.

    Attributes:
        mode: of the expert.
        task: of the expert.
    """

    kind: ClassVar[str] = "expert-scores"
    mode: str
    task: str

    @property
    def about(self) -> str:
        """Mode and task."""
        return f"score · {self.mode} · {self.task}"

    def run(self, context: Context) -> None:
        """Score on columns if the mode has them, else by forward passes."""
        wanted = {"test": self.tasks, "validation": (self.task,)}
        context.progress.begin(self.label, len(wanted))
        results: dict[str, Mapping[str, Result]] = {}
        evaluator, adapter = self.evaluator(context), context.experts[self.mode][self.task]
        for split, names in wanted.items():
            if scored_on_columns(context.recipe, context.sources, self.mode):
                results[split] = context.columns.results(self.mode, names, split, {self.task: 1.0})
            else:
                results[split] = evaluator.evaluate(scoring_key(adapter), lambda: adapter, names, split)
            context.progress.advance(detail=split)
        outcome = Outcome(self.mode, "expert", "", (self.task,), "none", {}, results)
        self.write(context, Outcomes([outcome], [None]))
        context.progress.end()


@dataclass(frozen=True)
class FusionScoresJob(ScoresJob):
    """Choose coefficients for every cell of a block, and score the chosen candidates.

    Attributes:
        mode, space: of the cells.
        subsets: of the cells.
        entries: labels of the recipe's entries.
    """

    kind: ClassVar[str] = "fusion-scores"
    mode: str
    space: str
    subsets: tuple[tuple[str, ...], ...]
    entries: tuple[str, ...]

    @property
    def about(self) -> str:
        """Mode, space, the entry if there is one, and subsets."""
        first, last = ("+".join(subset) for subset in (self.subsets[0], self.subsets[-1]))
        place = " · ".join(["fuse", self.mode, self.space, *(self.entries if len(self.entries) == 1 else ())])
        return f"{place} · {first}" + (f" … {last}" if len(self.subsets) > 1 else "")

    def run(self, context: Context) -> None:
        """Fill the cells, subset by subset."""
        stage, listed = self._stage(context), self.cells(context.recipe)
        context.progress.begin(self.label, len(listed))
        fused = stage.run(listed, context.progress)
        selections = [one.found.to_dict() if one.found is not None else None for one in fused]
        rows, searches, polishes = candidate_rows(fused), search_rows(fused), polish_rows(fused)
        self.write(context, Outcomes([one.outcome for one in fused], selections, rows, searches, polishes))
        context.progress.end()

    def cells(self, recipe: Recipe) -> list[Cell]:
        """Return the cells of the block."""
        place = (self.mode, self.space)
        listed = (cell for cell in cells(recipe, self.subsets) if (cell.mode, cell.space) == place)
        return [cell for cell in listed if cell.entry.label in self.entries]

    def _stage(self, context: Context) -> FusionStage:
        recipe, size = context.recipe, context.recipe.evaluation.batch_size
        statistics = context.statistics(self.mode) if kinds_of(recipe, self.mode) else {}
        folder = context.run / "cache" / "searches"
        on_columns = scored_on_columns(recipe, context.sources, self.mode)
        columns = partial(context.columns.results, self.mode) if on_columns else None
        return FusionStage(
            recipe,
            context.fusion(self.mode, self.space, statistics),
            Scoring(self.evaluator(context), recipe.seed, columns),
            self._baselines(context),
            Searches(context.base, context.tasks, context.columns, folder, recipe.seed, size),
            context.polisher,
            context.router,
        )

    def _baselines(self, context: Context) -> dict[str, dict[str, Result]]:
        """Return split -> task -> the result of the mode's expert on its own task."""
        results_of: dict[str, dict[str, Result]] = {}
        for job in (context.plan[key] for key in self.inputs):
            if isinstance(job, ExpertScoresJob):
                (outcome,) = job.outcomes(context).chosen
                for split, results in outcome.results.items():
                    results_of.setdefault(split, {})[job.task] = results[job.task]
        return results_of


def _measured(run: Path, key: str) -> Path:
    return run / "cache" / "scores" / f"{key}.jsonl"


def fold(run: Path, keep: Iterable[str] = ()) -> None:
    """Add the scores of jobs that are done, or not in the plan any more, to the archive, and remove their files.

    Args:
        run: the run's folder.
        keep: keys of jobs that are not done; their files stay.
    """
    kept, folder = set(keep), run / "cache" / "scores"
    parts = [path for path in sorted(folder.glob("*.jsonl")) if path.stem not in kept]
    if not parts:
        return
    archive = ScoreStore(run / "cache" / "scores.jsonl")
    for path in parts:
        part = ScoreStore.read(path)
        for key in part:
            result = part.get(key)
            if archive.get(key) is None and result is not None:
                archive.put(key, result)
        path.unlink()
