"""Scores of the base, of the experts, and of fusions by blocks of cells: a job and a file of outcomes for each.

    RUN/cache/outcomes/<key>.json   the result of a job: outcomes with their predictions, candidates, searches
    RUN/cache/scores/<key>.jsonl    every score that it measured, a line each, so that a killed job goes on
    RUN/cache/scores.jsonl          the same of earlier runs, plans and versions; see `fold`

A job knows the scores of the archive and of the jobs that it reads, and measures the others itself. So what it writes
does not depend on which jobs were done before it, or beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tangora.config.recipe import FusionEntry, Recipe
from tangora.evaluation.candidates import Scoring
from tangora.evaluation.evaluator import Evaluator, Result, ScoreStore, scoring_code, scoring_key
from tangora.evaluation.results import Outcome
from tangora.methods import get
from tangora.modes.contract import mode_of
from tangora.runs.jobs import Job, Resources
from tangora.runs.stages.cells import Cell, cells
from tangora.runs.stages.column_files import ColumnsJob, scored_on_columns
from tangora.runs.stages.experts import ExpertJob
from tangora.runs.stages.fusion import FusionStage, candidate_rows, search_rows
from tangora.runs.stages.outcomes import Outcomes, read_outcomes, write_outcomes
from tangora.runs.stages.search import Searches
from tangora.runs.stages.statistics import StatisticsJob, kinds_of
from tangora.runs.stages.work import cells_work, rows_of
from tangora.support.files import digest
from tangora.support.seams import SEARCHES
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.sources import Sources

__all__ = [
    "ExpertScoresJob",
    "FusionScoresJob",
    "ScoresJob",
    "ZeroShotJob",
    "expert_score_jobs",
    "fold",
    "fusion_score_jobs",
    "zero_shot_job",
]

CODE = "scores-1"  # raise it when the same scores would be written in another form
SUBSETS = 8  # in one job: enough that loading the experts costs little, few enough to share among processes


@dataclass(frozen=True)
class ScoresJob(Job):
    """A job whose result are outcomes."""

    stage: ClassVar[str] = "fuse and score"

    def files(self, context: Context) -> list[Path]:
        """The outcomes."""
        return [context.run / "cache" / "outcomes" / f"{self.key}.json"]

    def outcomes(self, context: Context) -> Outcomes:
        """Return the result of a job that is done."""
        return read_outcomes(self.files(context)[0])

    def write(self, context: Context, outcomes: Outcomes) -> None:
        """Write the result."""
        write_outcomes(self.files(context)[0], outcomes)

    def evaluator(self, context: Context) -> Evaluator:
        """Return an evaluator that knows the scores of the inputs, and keeps new ones in the job's own file."""
        known = [ScoreStore.read(_measured(context.run, key)) for key in self.inputs]
        return context.evaluator(ScoreStore(_measured(context.run, self.key), [context.archive, *known]))


@dataclass(frozen=True)
class ZeroShotJob(ScoresJob):
    """Score the base model as it is, on every task."""

    kind: ClassVar[str] = "zero-shot"

    @property
    def label(self) -> str:
        """What is scored."""
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
    """Score an expert on every task's test rows, and on its own validation rows.

    Attributes:
        mode: of the expert.
        task: of the expert.
    """

    kind: ClassVar[str] = "expert-scores"
    mode: str
    task: str

    @property
    def label(self) -> str:
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
    """Choose coefficients for every cell of a block, and score what was chosen.

    Attributes:
        mode, space: of the cells.
        subsets: of the cells.
    """

    kind: ClassVar[str] = "fusion-scores"
    mode: str
    space: str
    subsets: tuple[tuple[str, ...], ...]

    @property
    def label(self) -> str:
        """Mode, space and subsets."""
        first, last = ("+".join(subset) for subset in (self.subsets[0], self.subsets[-1]))
        return f"fuse · {self.mode} · {self.space} · {first}" + (f" … {last}" if len(self.subsets) > 1 else "")

    def run(self, context: Context) -> None:
        """Go through the cells, a subset after the other."""
        stage, listed = self._stage(context), self.cells(context.recipe)
        context.progress.begin(self.label, len(listed))
        fused = stage.run(listed, context.progress)
        selections = [one.found.to_dict() if one.found is not None else None for one in fused]
        rows, found = candidate_rows(fused), search_rows(fused)
        self.write(context, Outcomes([one.outcome for one in fused], selections, rows, found))
        context.progress.end()

    def cells(self, recipe: Recipe) -> list[Cell]:
        """Return the cells of the block."""
        return [cell for cell in cells(recipe)
                if (cell.mode, cell.space) == (self.mode, self.space) and cell.subset in self.subsets]  # fmt: skip

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
        )

    def _baselines(self, context: Context) -> dict[str, dict[str, Result]]:
        """Split -> task -> the result of the mode's expert on its own task."""
        found: dict[str, dict[str, Result]] = {}
        for job in (context.plan[key] for key in self.inputs):
            if isinstance(job, ExpertScoresJob):
                (outcome,) = job.outcomes(context).chosen
                for split, results in outcome.results.items():
                    found.setdefault(split, {})[job.task] = results[job.task]
        return found


def _measured(run: Path, key: str) -> Path:
    return run / "cache" / "scores" / f"{key}.jsonl"


def zero_shot_job(recipe: Recipe, sources: Sources) -> ZeroShotJob:
    """Return the job that scores the base model."""
    prints = [facts.fingerprint for facts in sources.tasks.values()]
    key = digest(
        [CODE, "zero-shot", _code(recipe), sources.base, list(sources.tasks), prints, recipe.evaluation.batch_size]
    )
    return ZeroShotJob(key, tuple(sources.tasks), (), Resources(rows_of(sources, sources.tasks, "test", "validation")))


def expert_score_jobs(
    recipe: Recipe, sources: Sources, experts: Sequence[ExpertJob], columns: Sequence[ColumnsJob]
) -> list[ExpertScoresJob]:
    """Return a job for every expert."""
    jobs, names = [], tuple(sources.tasks)
    for expert in experts:
        read = [job for job in columns if job.mode == expert.mode]
        for task in expert.tasks:
            needed = [job.key for job in read if job.split == "test" or job.tasks == (task,)]
            inputs = (expert.key, *needed)
            key = digest([CODE, "expert", _code(recipe), task, inputs, list(names), recipe.evaluation.batch_size])
            work = 1.0 if read else rows_of(sources, names, "test") + rows_of(sources, [task], "validation")
            jobs.append(ExpertScoresJob(key, names, inputs, Resources(work), expert.mode, task))
    return jobs


def fusion_score_jobs(recipe: Recipe, sources: Sources, before: Sequence[Job]) -> list[FusionScoresJob]:
    """Return a job for every block of cells: a mode, a space, and up to `SUBSETS` subsets.

    Cells that are the same in two spaces are scored once: the job of a space reads the scores of the one before it.
    """
    jobs: list[FusionScoresJob] = []
    for (mode, space), of_space in groupby(cells(recipe), key=lambda cell: (cell.mode, cell.space)):
        listed = list(of_space)
        subsets = list(dict.fromkeys(cell.subset for cell in listed))
        blocks = [tuple(subsets[i : i + SUBSETS]) for i in range(0, len(subsets), SUBSETS)]
        read = tuple(job.key for job in before if _is_read(job, mode))
        for block in blocks:
            own = [cell for cell in listed if cell.subset in block]
            same = tuple(job.key for job in jobs if job.mode == mode and set(job.subsets) & set(block))
            key = digest([CODE, "fusion", mode, space, block, _decides(recipe, own), read, same])
            work = cells_work(recipe, sources, own)
            names = tuple(dict.fromkeys(name for subset in block for name in subset))
            jobs.append(FusionScoresJob(key, names, (*read, *same), work, mode, space, block))
    return jobs


def _is_read(job: Job, mode: str) -> bool:
    if isinstance(job, ZeroShotJob):
        return True
    return isinstance(job, ExpertJob | StatisticsJob | ColumnsJob | ExpertScoresJob) and job.mode == mode


def _decides(recipe: Recipe, listed: Sequence[Cell]) -> list[object]:
    """What decides the scores of cells, besides the inputs: settings, and the code of the methods."""
    entries: list[FusionEntry] = []
    for cell in listed:
        if cell.entry not in entries:
            entries.append(cell.entry)
    searches = [SEARCHES.get(entry.search.name) for entry in entries if entry.search is not None]
    methods = [get(entry.method).function for entry in entries]
    code = source_digest(FusionStage, *methods, *searches, *(search.settings for search in searches))
    settings = [entry.model_dump(mode="json") for entry in entries]
    return [settings, code, _code(recipe), recipe.fusion.selection, recipe.seed, recipe.evaluation.batch_size]


def _code(recipe: Recipe) -> str:
    """The code that scores answers of the recipe's family by its metrics, in its modes."""
    metrics = sorted({metric for task in recipe.tasks for metric in task.all_metrics})
    modes = [mode_of(settings) for settings in recipe.modes.values()]
    return digest([scoring_code(recipe.base.family, tuple(metrics)), source_digest(*modes)])


def fold(run: Path, keep: Iterable[str] = ()) -> None:
    """Add the scores of finished and forgotten jobs to the archive, and remove their files.

    Args:
        run: the run's folder.
        keep: keys of jobs whose files stay, since they are not done.
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
