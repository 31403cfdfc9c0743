"""``tangora statistics``: collect the statistics of an expert's data that regmean and fisher need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import (
    FromHub,
    Options,
    OverwriteOption,
    RecipeArgument,
    SettingsOption,
    SplitOption,
    TrustOption,
)
from tangora.cli.output import Output
from tangora.cli.recipes import task_config

if TYPE_CHECKING:
    from tangora.fusion.statistics import Statistics

__all__ = ["COMMAND", "StatisticsOptions", "statistics"]


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions(Options):
    """The expert, its rows, and the file of the statistics."""

    recipe: RecipeArgument
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", help="The expert: a folder, or org/name of the Hub."),
        FromHub("adapter"),
    ]
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="A .safetensors file; a .json is written beside it."),
    ]
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="One of the recipe's tasks; default: the adapter's own.", autocompletion=completion.tasks
        ),
    ] = None
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", help="gram (for regmean) or fisher; default: both.", autocompletion=completion.statistics
        ),
    ] = None
    split: SplitOption = "train"
    rows: Annotated[int, typer.Option("--rows", help="Largest number of rows, a sample by the recipe's seed.")] = 1000
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows per forward pass.")] = 16
    also: Annotated[
        list[Path] | None,
        typer.Option("--also", metavar="ADAPTER", help="Also cover the sites of this adapter."),
        FromHub("adapter"),
    ] = None
    settings: SettingsOption = None
    trust_remote_code: TrustOption = False
    overwrite: OverwriteOption = False


def statistics(options: StatisticsOptions, output: Output) -> None:
    """Collect the statistics of an expert's data (Gram, Fisher) that regmean and fisher need.

    The fusion then needs neither the data nor the base model.
    """
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic
    from tangora.support.files import refuse_existing

    recipe = load_recipe(options.recipe, options.settings or [], trust_remote_code=options.trust_remote_code)
    refuse_existing(options.out, options.overwrite, [options.adapter])
    from tangora.adapters.adapter import load_beside  # deferred: imports torch
    from tangora.evaluation.collection import collect_statistics
    from tangora.runs.machine import machine_of
    from tangora.tasks import load_base, load_task

    where = recipe.base.model, recipe.base.revision
    expert = load_beside(options.adapter, *where)
    chosen = task_config(recipe, options.task or expert.metadata.task or "")
    machine = machine_of(recipe)
    machine.use_threads()
    base = load_base(recipe.base, machine)
    with output.progress() as progress:
        collected = collect_statistics(
            base,
            load_task(chosen, base, recipe.seed),
            expert,
            kinds=options.kinds or ["gram", "fisher"],  # type: ignore[arg-type]  # other kinds are refused
            split=options.split,
            rows=options.rows,
            seed=recipe.seed,
            batch_size=options.batch_size,
            also=[load_beside(path, *where) for path in options.also or []],
            progress=progress,
        )
    collected.save(options.out, overwrite=options.overwrite)
    document = {**collected.about.model_dump(mode="json"), "tensors": len(collected.tensors), "file": options.out}
    output.result(document, *_lines(collected), f"statistics: {options.out.resolve()}")


def _lines(collected: Statistics) -> Iterator[str]:
    about = collected.about
    what = f"{' and '.join(about.kinds)} of {about.rows} {about.split} rows of {about.task}"
    yield f"{what}: {len(collected.tensors)} tensors"
    if about.averaged:
        yield f"without a Gram, and averaged by regmean: {len(about.averaged)} tensors"


COMMAND = Command(statistics, example="tangora statistics recipe.yaml adapters/sst2 --out sst2.safetensors")
