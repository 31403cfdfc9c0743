"""``tangora evaluate``: adapters, and the base alone, on the tasks of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli.command import Command
from tangora.cli.options import Options, RecipeArgument, SameBaseOption, SettingsOption, SplitOption, TrustOption
from tangora.cli.output import Output
from tangora.cli.tables import score_table
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result

__all__ = ["COMMAND", "EvaluateOptions", "evaluate"]

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """The adapters and the rows."""

    recipe: RecipeArgument
    adapters: Annotated[list[Path] | None, typer.Argument(metavar="ADAPTER", help="Without any: the base alone.")] = (
        None
    )
    split: SplitOption = "test"
    same_base: SameBaseOption = False
    settings: SettingsOption = None
    trust_remote_code: TrustOption = False


def evaluate(options: EvaluateOptions, output: Output) -> None:
    """Score adapters, and the base model itself, on the tasks of a recipe."""
    if options.split not in _SPLITS:
        fix = f"give one of {', '.join(_SPLITS)}"
        raise ArgumentError("no such split", got=options.split, where="--split", fix=fix)
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic

    recipe = load_recipe(options.recipe, options.settings or [], trust_remote_code=options.trust_remote_code)
    from tangora.adapters.adapter import load  # deferred: imports torch
    from tangora.evaluation.evaluator import Evaluator, scoring_key
    from tangora.runs.runner import prepare

    adapters = {str(path): load(path) for path in options.adapters or []}
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
    output.result(_document(scores, metrics, options.split), score_table(scores, metrics, options.split))


def _document(scores: Mapping[str, Mapping[str, Result]], metrics: Mapping[str, str], split: str) -> dict[str, Any]:
    measured = {
        candidate: {
            "mean": sum(result.score for result in results.values()) / len(results),
            "tasks": {name: {"score": result.score, "loss": result.loss} for name, result in results.items()},
        }
        for candidate, results in scores.items()
    }
    return {"split": split, "metrics": metrics, "scores": measured}


COMMAND = Command(evaluate, example="tangora evaluate recipe.yaml fused adapters/sst2 --split test")
