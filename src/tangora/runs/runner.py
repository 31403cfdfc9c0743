"""A run from its recipe to its report: the order of things, resuming, and what stands where.

    prepare    base model and tasks, inputs preprocessed once        (memory)
    experts    RUN/adapters/<mode>/<task>/                           cached by stage hash
    statistics RUN/statistics/<mode>/<task>.safetensors, .json       where a method is given them; kept
    scores     RUN/cache/scores.jsonl, one line a measured score     cached by candidate key
    tables     RUN/scores.csv, candidates.csv, summary.json, similarity.json
    fused      RUN/fused/<mode>/<label>[-factors|-core][-oracle]/    the largest subset
    report     RUN/figures/, RUN/report.html

Every output appears whole or not at all, so a killed run started again goes on where it was and ends with the same
files (wall times apart).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.config.recipe import FusionEntry, Recipe
from tangora.errors import FusionError
from tangora.progress import Progress
from tangora.runs.folder import Clock, about, claim, locked, logged
from tangora.support.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.evaluation.evaluator import Evaluator, Result
    from tangora.evaluation.results import Outcome
    from tangora.fusion.statistics import Statistics
    from tangora.runs.stages.columns import ColumnStore
    from tangora.runs.stages.fusion import Fused, FusionStage
    from tangora.tasks import Base, Task

__all__ = ["prepare", "run"]

log = logging.getLogger("tangora")
Experts = Mapping[str, Mapping[str, "Adapter"]]


def run(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune, fuse, evaluate, report; returns the run's folder.

    Args:
        recipe: from `tangora.config.recipe.load_recipe`.
        out: the run's folder. One that holds the same recipe is gone on with.
        overwrite: let a different recipe take over the folder; what it shares with the old one is reused.
        progress: hears what is being done.

    Raises:
        OutputError: ``out`` holds something else, is in use by another run, or cannot be written.
        TangoraError: whatever is wrong with recipe, data, base or adapters.
    """
    out, progress = Path(out), progress or Progress()
    check_methods(recipe)
    claim(out, recipe, overwrite)
    with locked(out), logged(out):
        clock = Clock(out)
        log.info("run %s in %s", recipe.name, out)
        with clock("prepare"):
            base, tasks = prepare(recipe, progress)
            check_modes(recipe, base)
        write_text(out / "recipe.yaml", recipe.to_yaml())
        with clock("fine-tune"):
            from tangora.runs.stages.experts import make_experts

            experts = make_experts(recipe, out, base, tasks, progress)
        from tangora.runs.stages.statistics import make_statistics, told

        with clock("statistics"):
            statistics = make_statistics(recipe, out, base, tasks, experts, progress)
        with clock("fuse and score"):
            outcomes, fused, stage = _score(recipe, out, base, tasks, experts, statistics, progress)
        with clock("tables"):
            _tables(recipe, out, tasks, outcomes, fused, stage, experts, progress)
        with clock("fused adapters"):
            _save_fused(recipe, out, fused, stage, progress)
        clock.save(about(recipe, base, tasks) | ({"statistics": told(statistics)} if statistics else {}))
        from tangora import report
        from tangora.report import explorer

        explorer.build_all(out, recipe)
        report.build(out)
        log.info("done: %s", out / "report.html")
    return out


def prepare(recipe: Recipe, progress: Progress | None = None) -> tuple[Base, list[Task]]:
    """Load the base model and every task of a recipe."""
    from tangora.tasks import load_base, load_task
    from tangora.tasks.base import BUILTIN

    progress = progress or Progress()
    if recipe.base.model == BUILTIN:
        _pretrain(progress)
    progress.begin("load base and data", 1 + len(recipe.tasks))
    base = load_base(recipe.base)
    progress.advance(detail=recipe.base.model)
    tasks = []
    for config in recipe.tasks:
        tasks.append(load_task(config, base, recipe.seed))
        progress.advance(detail=config.name)
    progress.end()
    return base, tasks


def _pretrain(progress: Progress) -> None:
    """Make the built-in model where it is not there yet, a minute that should not pass in silence."""
    from tangora import quickstart

    def on_step(done: int, steps: int, loss: float) -> None:
        if done == 1:
            progress.begin("pretrain the built-in model", steps)
        progress.update(done, f"loss {loss:.3f}")
        if done == steps:
            progress.end()

    quickstart.encoder(on_step)


def check_modes(recipe: Recipe, base: Base) -> None:
    """Refuse what a mode cannot adapt, or start from, before any other mode is trained.

    Raises:
        ModelError: a target that matches nothing, a pattern that is none, or a start that changes the base weights.
    """
    from tangora.adapters import initial
    from tangora.modes.targets import check_syntax, check_targets

    for config in (recipe.finetune_config(mode) for mode in recipe.modes):
        if config.train == "adapter":
            check_syntax(config.lora)
            check_targets(base.backbone, config.lora.target_modules)
            initial.kind_of(config.lora.init)


def check_methods(recipe: Recipe) -> None:
    """Refuse unknown methods and parameters before anything is trained.

    Raises:
        FusionError: a method or one of its parameters is unknown or out of range, a subset has another number of
            tasks than the method can fuse, or a method that needs statistics is asked for in another space than delta.
    """
    from tangora.coefficients import grid
    from tangora.coefficients.requirements import refuse_unless_searchable
    from tangora.methods import get

    for entry in recipe.fusion.methods:
        method = get(entry.method)
        linearized = [m for m in entry.modes or recipe.modes if recipe.modes[m].linearize == "model"]
        refuse_unless_searchable(entry, linearized)
        for candidate in grid.candidates(1.0, entry.parameters):
            method.check(candidate.parameters)
        if method.statistics and (others := sorted(set(entry.spaces) - {"delta"})):
            what, where = f"{method.name}: statistics are of whole weights", f"fusion.methods.{entry.label}.spaces"
            raise FusionError(what, got=others[0], where=where, fix="leave the spaces out, or give delta")
        for size in _sizes(recipe, entry):
            method.check_count(size, where=f"fusion.methods.{entry.label}.sizes")


def _sizes(recipe: Recipe, entry: FusionEntry) -> Iterator[int]:
    """The numbers of tasks that an entry of the comparison fuses."""
    sizes = recipe.fusion.subsets.sizes
    for size in range(2, len(recipe.tasks) + 1) if isinstance(sizes, str) else sizes:
        if size in (entry.sizes or [size]):
            yield size


def _score(
    recipe: Recipe,
    out: Path,
    base: Base,
    tasks: Sequence[Task],
    experts: Experts,
    statistics: Mapping[str, Mapping[str, Statistics]],
    progress: Progress,
) -> tuple[list[Outcome], list[Fused], FusionStage]:
    from tangora.evaluation.evaluator import Evaluator, ScoreStore
    from tangora.runs.stages.columns import ColumnStore
    from tangora.runs.stages.fusion import FusionStage
    from tangora.runs.stages.search import Searches

    store = ScoreStore(out / "cache" / "scores.jsonl")
    evaluator = Evaluator(base, tasks, batch_size=recipe.evaluation.batch_size, store=store)
    named, size = {t.name: t for t in tasks}, recipe.evaluation.batch_size
    columns = ColumnStore(base, named, experts, out / "cache" / "columns", size)
    outcomes = _baselines(experts, evaluator, columns, tasks, progress)
    baselines: dict[tuple[str, str], dict[str, Result]] = {}
    for outcome in outcomes:
        if outcome.method == "expert":
            own = outcome.subset[0]
            for split in ("validation", "test"):
                baselines.setdefault((outcome.mode, split), {})[own] = outcome.results[split][own]
    searches = Searches(base, named, columns, out / "cache" / "searches", recipe.seed, size)
    stage = FusionStage(recipe, experts, evaluator, baselines, progress, statistics, searches, columns)
    fused = stage.run()
    return outcomes + [f.outcome for f in fused], fused, stage


def _baselines(
    experts: Experts, evaluator: Evaluator, columns: ColumnStore, tasks: Sequence[Task], progress: Progress
) -> list[Outcome]:
    """Zero-shot, and every expert on every task's test rows and its own validation rows."""
    from tangora.evaluation.evaluator import scoring_key
    from tangora.evaluation.results import Outcome

    names = [t.name for t in tasks]
    progress.begin("score the experts", 1 + sum(len(of_mode) for of_mode in experts.values()))
    zero = {split: evaluator.evaluate("zero_shot", lambda: None, names, split) for split in ("test", "validation")}
    outcomes = [Outcome("-", "zero_shot", "", (), "none", {}, zero)]
    progress.advance(detail="zero-shot")
    for mode, of_mode in experts.items():
        for task, adapter in of_mode.items():
            asked = {"test": names, "validation": [task]}
            if columns.scores(mode):
                results = {split: columns.results(mode, whose, split, {task: 1.0}) for split, whose in asked.items()}
            else:
                key, make = scoring_key(adapter), _constant(adapter)
                results = {split: evaluator.evaluate(key, make, whose, split) for split, whose in asked.items()}
            outcomes.append(Outcome(mode, "expert", "", (task,), "none", {}, results))
            progress.advance(detail=f"{mode} · {task}")
    progress.end()
    return outcomes


def _constant(adapter: Adapter) -> Any:
    return lambda: adapter


def _tables(
    recipe: Recipe,
    out: Path,
    tasks: Sequence[Task],
    outcomes: Sequence[Outcome],
    fused: Sequence[Fused],
    stage: FusionStage,
    experts: Experts,
    progress: Progress,
) -> None:
    from tangora.analysis.cosine import cosine_matrix
    from tangora.evaluation import results as scores
    from tangora.evaluation.predictions import write_apart
    from tangora.runs.stages.fusion import CANDIDATE_COLUMNS, candidate_rows, search_rows

    progress.begin("tables", 3)
    bootstrap = scores.Bootstrap(tasks, recipe.evaluation.bootstrap, recipe.seed)
    scores.write_csv(out / "scores.csv", scores.rows(outcomes, tasks, bootstrap))
    progress.advance(detail="scores.csv")
    write_json(out / "summary.json", {"rows": scores.summary(outcomes, tasks, bootstrap)})
    listed = [{**c, "weights": json.dumps(c["weights"]), "parameters": json.dumps(c["parameters"])}
              for c in candidate_rows(fused)]  # fmt: skip
    scores.write_csv(out / "candidates.csv", listed, CANDIDATE_COLUMNS)
    if found := search_rows(fused):
        write_json(out / "searches.json", {"rows": found})
    if stage.columns is not None:
        write_apart(out, outcomes, stage.columns.scores)
    progress.advance(detail="candidates.csv")
    similarity = {
        mode: {
            "tasks": list(of_mode),
            "cosine": cosine_matrix([a.task_vector for a in of_mode.values()]).tolist(),
        }
        for mode, of_mode in experts.items()
    }
    write_json(out / "similarity.json", similarity)
    progress.advance(detail="similarity.json")
    progress.end()


def _save_fused(recipe: Recipe, out: Path, fused: Sequence[Fused], stage: FusionStage, progress: Progress) -> None:
    """The adapters of the largest subset, with the scores they were measured to have."""
    largest = max((len(f.cell.subset) for f in fused), default=0)
    chosen = [f for f in fused if len(f.cell.subset) == largest]
    progress.begin("save fused adapters", len(chosen))
    for one in chosen:
        name = one.cell.entry.label + (f"-{one.cell.space}" if one.cell.space != "delta" else "")
        folder = out / "fused" / one.cell.mode / (name + ("-oracle" if one.selection == "oracle" else ""))
        scores = {task: result.score for task, result in one.outcome.results["test"].items()}
        adapter = stage.make(one).with_scores(scores, split="test", selection=one.selection)
        if not _is_saved(folder, adapter):
            adapter.save(folder, overwrite=True)
        progress.advance(detail=f"{one.cell.mode} · {name}")
    progress.end()


def _is_saved(folder: Path, adapter: Adapter) -> bool:
    if not (folder / "tangora.json").is_file():
        return False
    return read_json(folder / "tangora.json") == adapter.metadata.model_dump(mode="json")
