"""``tangora evaluate``: adapters, and the base alone, on the tasks of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli.command import Command
from tangora.cli.options import (
    FromHub,
    Options,
    RecipeArgument,
    SameBaseOption,
    SettingsOption,
    SplitOption,
    TrustOption,
)
from tangora.cli.output import Output
from tangora.cli.tables import harness_table, score_table
from tangora.errors import ArgumentError
from tangora.support.hub import shown_source

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.recipe import Recipe
    from tangora.evaluation.evaluator import Result

__all__ = ["COMMAND", "EvaluateOptions", "evaluate"]

_HARNESS = "Harness"
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """The adapters and the rows."""

    recipe: RecipeArgument
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ADAPTER", help="Folders, or org/name of the Hub. Without any: the base alone."),
        FromHub("adapter"),
    ] = None
    split: SplitOption = "test"
    as_peft: Annotated[
        bool,
        typer.Option("--as-peft", help="Also score tangent adapters in the ordinary network that plain peft loads."),
    ] = False
    same_base: SameBaseOption = False
    settings: SettingsOption = None
    trust_remote_code: TrustOption = False
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(
            "--lm-eval",
            metavar="TASKS",
            help="Tasks of the lm-eval harness, in place of the recipe's.",
            rich_help_panel=_HARNESS,
        ),
    ] = None
    lm_eval_path: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder with tasks of your own, as YAML.", rich_help_panel=_HARNESS),
    ] = None
    lm_eval_limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first rows of each task.", rich_help_panel=_HARNESS)
    ] = None
    lm_eval_shots: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Examples in each prompt.", rich_help_panel=_HARNESS)
    ] = None


def evaluate(options: EvaluateOptions, output: Output) -> None:
    """Score adapters, and the base model itself, on the tasks of a recipe.

    Each adapter answers in the form in which it was trained: a tangent adapter in its expansion.
    """
    if options.split not in _SPLITS:
        fix = f"give one of {', '.join(_SPLITS)}"
        raise ArgumentError("no such split", got=options.split, where="--split", fix=fix)
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic

    recipe = load_recipe(options.recipe, options.settings or [], trust_remote_code=options.trust_remote_code)
    if options.lm_eval:
        _by_harness(options, recipe, output)
        return
    from tangora.adapters.adapter import load_beside  # deferred: imports torch
    from tangora.evaluation.evaluator import Evaluator, scoring_key
    from tangora.evaluation.warnings import base_warnings, score_warnings
    from tangora.runs.runner import prepare

    where = recipe.base.model, recipe.base.revision
    adapters = {shown_source(path): load_beside(path, *where) for path in options.adapters or []}
    if options.as_peft:
        adapters = _both_ways(adapters, output)
    with output.progress() as progress:
        base, tasks = prepare(recipe, progress)
        size = recipe.evaluation.batch_size
        evaluator = Evaluator(base, tasks, batch_size=size, same_base=options.same_base)
        names = [task.name for task in tasks]
        progress.begin(f"score on {options.split}", 1 + len(adapters))
        scores = {"zero-shot": evaluator.evaluate("zero_shot", lambda: None, names, options.split)}
        progress.advance()
        for path, adapter in adapters.items():
            scores[path] = evaluator.evaluate(scoring_key(adapter), partial(adapters.get, path), names, options.split)
            progress.advance(detail=path)
        progress.end()
    metrics = {task.name: task.metric for task in tasks}
    warnings = base_warnings(adapters, base) + score_warnings(scores, tasks, options.split)
    output.note(*(f"warning: {line}" for line in warnings))
    document = _document(scores, metrics, options.split) | {"warnings": warnings}
    output.result(document, score_table(scores, metrics, options.split))


def _by_harness(options: EvaluateOptions, recipe: Recipe, output: Output) -> None:
    """Score by tasks of the harness; the base is loaded once, and the recipe's own tasks are not read."""
    from tangora.adapters.adapter import load  # deferred: imports torch
    from tangora.evaluation.harness import harness_scores
    from tangora.runs.machine import machine_of
    from tangora.tasks.harness_rows import require_harness
    from tangora.tasks.load import load_base

    require_harness()
    names = [name.strip() for given in options.lm_eval or [] for name in given.split(",") if name.strip()]
    machine = machine_of(recipe)
    machine.use_threads()
    candidates: dict[str, Callable[[], Adapter | None]] = {"zero-shot": lambda: None}
    candidates |= {shown_source(path): partial(load, path) for path in options.adapters or []}
    with output.progress() as progress:
        progress.begin("load the base", 1)
        base = load_base(recipe.base, machine)
        progress.end()
        progress.begin("score by the harness", len(candidates))
        scores = harness_scores(
            candidates,
            base,
            names,
            include=options.lm_eval_path,
            limit=options.lm_eval_limit,
            shots=options.lm_eval_shots,
            batch_size=recipe.evaluation.batch_size,
            same_base=options.same_base,
            on_candidate=lambda name: progress.advance(detail=name),
        )
        progress.end()
    document = {"harness": names, "limit": options.lm_eval_limit, "scores": scores}
    output.result(document, harness_table(scores))


def _both_ways(adapters: Mapping[str, Adapter], output: Output) -> dict[str, Adapter]:
    """Add each adapter of an expansion once more, as one of the ordinary network."""
    from tangora.modes.both_ways import as_weights  # deferred: imports torch

    listed: dict[str, Adapter] = {}
    for path, adapter in adapters.items():
        listed[path] = adapter
        if adapter.metadata.expanded:
            where = "in plain peft" if adapter.metadata.of_kind.in_peft else "added to the weights"
            listed[f"{path}, {where}"] = as_weights(adapter)
    if len(listed) == len(adapters):
        output.note("no adapter answers in an expansion: plain peft loads the function that is scored")
    return listed


def _document(scores: Mapping[str, Mapping[str, Result]], metrics: Mapping[str, str], split: str) -> dict[str, Any]:
    measured = {
        candidate: {
            "mean": sum(result.score for result in results.values()) / len(results),
            "tasks": {name: {"score": result.score, "loss": result.loss} for name, result in results.items()},
        }
        for candidate, results in scores.items()
    }
    return {"split": split, "metrics": metrics, "scores": measured}


COMMAND = Command(
    evaluate,
    example="tangora evaluate recipe.yaml fused adapters/sst2 --split test",
    examples={_HARNESS: "tangora evaluate gen7 fused --lm-eval arc_easy --lm-eval-limit 200"},
)
