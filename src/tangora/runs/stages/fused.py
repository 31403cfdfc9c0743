"""The fused adapters of the largest subset of tasks.

RUN/fused/<mode>/<label>[-factors|-core][-oracle]/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tangora.adapters.heads import heads_digest, read_heads, read_records
from tangora.adapters.metadata import FILE
from tangora.config.recipe import FusionEntry, Recipe
from tangora.errors import TangoraError
from tangora.evaluation.evaluator import ScoreStore, scoring_key
from tangora.evaluation.results import Outcome
from tangora.modes.contract import mode_of
from tangora.runs.jobs import Job, Resources
from tangora.runs.stages.cells import Cell
from tangora.runs.stages.experts import ExpertJob
from tangora.runs.stages.fusion import Candidate
from tangora.runs.stages.outcomes import joined
from tangora.runs.stages.scores import FusionScoresJob
from tangora.runs.stages.statistics import StatisticsJob, kinds_of
from tangora.runs.stages.work import rows_of
from tangora.support.files import atomic_dir, digest, read_json, write_json
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.fusion.fusion import Fusion
    from tangora.runs.context import Context
    from tangora.runs.sources import Sources

__all__ = ["FusedJob", "fused_jobs"]


@dataclass(frozen=True)
class FusedJob(Job):
    """Make the adapters of one mode and space, with their measured scores.

    Attributes:
        mode, space: of the fusion.
    """

    kind: ClassVar[str] = "fused"
    stage: ClassVar[str] = "fused adapters"
    mode: str
    space: str

    @property
    def about(self) -> str:
        """Mode and space."""
        return f"save · {self.mode} · {self.space}"

    def run(self, context: Context) -> None:
        """Fuse again with the chosen coefficients, and save the adapters that do not exist yet."""
        chosen = self._chosen(context)
        context.progress.begin(self.label, len(chosen))
        for folder, (outcome, selection) in chosen.items():
            adapter, record = self._adapter(context, outcome, selection)
            if not _is_saved(folder, adapter):
                with atomic_dir(folder, overwrite=True, record=FILE) as staging:
                    adapter.save(staging)
                    if record is not None:
                        write_json(staging / "training.json", record)
            context.progress.advance(detail=folder.name)
        context.progress.end()

    def files(self, context: Context) -> list[Path]:
        """Return the ``tangora.json`` of each adapter."""
        return [folder / "tangora.json" for folder in self._chosen(context)]

    def _chosen(self, context: Context) -> dict[Path, tuple[Outcome, Mapping[str, Any] | None]]:
        """Return folder -> outcome and selection: for several subsets of the largest size, those of the last."""
        jobs = [job for key in self.inputs if isinstance(job := context.plan[key], FusionScoresJob)]
        outcomes = joined(job.outcomes(context) for job in jobs)
        size = max(len(subset) for job in jobs for subset in job.subsets)
        parent = context.home / "fused" / self.mode
        return {
            parent / _name(one): (one, selection)
            for one, selection in zip(outcomes.chosen, outcomes.selections, strict=True)
            if len(one.subset) == size
        }

    def _adapter(
        self, context: Context, outcome: Outcome, selection: Mapping[str, Any] | None
    ) -> tuple[Adapter, Mapping[str, Any] | None]:
        """Return an adapter with its scores, and the record of its polish if there was one."""
        statistics = context.statistics(self.mode) if kinds_of(context.recipe, self.mode) else {}
        fusion = context.fusion(self.mode, self.space, statistics)
        part = fusion.subset([context.names.index(name) for name in outcome.subset])
        made, record = self._made(context, outcome, part)
        made = made if selection is None or made.metadata.fused is None else made.with_selection(selection)
        scores = {task: result.score for task, result in outcome.results["test"].items()}
        about = {"selection": outcome.selection, **_ordinary(context, made, list(scores))}
        return made.with_scores(scores, split="test", **about), record

    def _made(self, context: Context, outcome: Outcome, fusion: Fusion) -> tuple[Adapter, Mapping[str, Any] | None]:
        """Fuse with the chosen coefficients, polish, or route."""
        entry, parameters = _entry(context.recipe, outcome), dict(outcome.coefficients)
        cell = Cell(self.mode, self.space, tuple(outcome.subset), entry)
        if entry.route is not None:
            return context.router.made(cell, fusion), None
        weights = parameters.pop("weights")
        if entry.polish is None:
            return fusion.merge(entry.method, weights, parameters, entry.rank), None
        candidate = Candidate(cell, weights, parameters)
        return context.polisher.polished(candidate, fusion), context.polisher.record(candidate, fusion)


def _ordinary(context: Context, adapter: Adapter, tasks: Sequence[str]) -> dict[str, Any]:
    """Score an adapter of an expansion as plain peft loads it: as the ordinary network with its weights."""
    if not adapter.metadata.expanded:
        return {}
    from tangora.modes.both_ways import as_weights  # deferred: imports torch

    plain = as_weights(adapter)
    evaluator = context.evaluator(ScoreStore())
    results = evaluator.evaluate(scoring_key(plain), lambda: plain, tasks, "test")
    return {"as_weights": {task: result.score for task, result in results.items()}}


def _name(outcome: Outcome) -> str:
    space = f"-{outcome.space}" if outcome.space != "delta" else ""
    return outcome.method + space + ("-oracle" if outcome.selection == "oracle" else "")


def _entry(recipe: Recipe, outcome: Outcome) -> FusionEntry:
    """Return the entry of the recipe for an outcome; a recipe has no two entries with one name."""
    return next(
        entry
        for entry in recipe.fusion.methods
        if entry.label == outcome.method
        and outcome.space in entry.spaces
        and outcome.mode in (entry.modes or [outcome.mode])
    )


def _is_saved(folder: Path, adapter: Adapter) -> bool:
    try:
        metadata, heads, records = read_json(folder / "tangora.json"), read_heads(folder), read_records(folder)
    except TangoraError:
        return False
    same_heads = heads_digest(heads) == heads_digest(adapter.heads) and records == adapter.records
    return same_heads and metadata == adapter.metadata.model_dump(mode="json")


def fused_jobs(
    recipe: Recipe,
    sources: Sources,
    experts: Sequence[ExpertJob],
    statistics: Sequence[StatisticsJob],
    fusions: Sequence[FusionScoresJob],
) -> list[FusedJob]:
    """Return a job for every mode and space in which subsets of the largest size are fused."""
    largest = max((len(subset) for job in fusions for subset in job.subsets), default=0)
    wanted = [job for job in fusions if any(len(subset) == largest for subset in job.subsets)]
    jobs = []
    for mode, space in dict.fromkeys((job.mode, job.space) for job in wanted):
        read: list[ExpertJob | StatisticsJob | FusionScoresJob] = [
            *(job for job in experts if job.mode == mode),
            *(job for job in statistics if job.mode == mode),
            *(job for job in wanted if (job.mode, job.space) == (mode, space)),
        ]
        inputs = tuple(job.key for job in read)
        key = digest(["fused-1", source_digest(FusedJob), mode, space, inputs])
        names = tuple(dict.fromkeys(name for job in wanted for name in job.tasks))
        jobs.append(FusedJob(key, names, inputs, _resources(recipe, sources, mode), mode, space))
    return jobs


def _resources(recipe: Recipe, sources: Sources, mode: str) -> Resources:
    """Return the work of a job: adapters of an expansion are scored in the ordinary network too."""
    if mode_of(recipe.modes[mode]).linearize != "model":
        return Resources(1.0, device=False)
    return Resources(len(recipe.fusion.methods) * rows_of(sources, sources.tasks, "test"))
