"""``tangora finetune``: train one adapter of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options, OverwriteOption, RecipeArgument, SettingsOption, TrustOption
from tangora.cli.output import Output
from tangora.cli.recipes import task_config
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.config.recipe import FinetuneConfig, Recipe
    from tangora.config.tasks import TaskSettings
    from tangora.tasks import Base, Task

__all__ = ["COMMAND", "FinetuneOptions", "finetune"]


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Options):
    """The adapter of a recipe, and its folder."""

    recipe: RecipeArgument
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="One of the recipe's tasks. A joint mode trains all of them.",
            autocompletion=completion.tasks,
        ),
    ] = None
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the adapter; for several, a folder of folders."),
    ]
    mode: Annotated[str, typer.Option("--mode", help="One of the recipe's modes.", autocompletion=completion.modes)] = (
        "lora"
    )
    settings: SettingsOption = None
    trust_remote_code: TrustOption = False
    overwrite: OverwriteOption = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the rows, estimate time and memory, and stop.")] = (
        False
    )

    def chosen(self, recipe: Recipe, joint: bool) -> list[TaskSettings]:
        """The tasks that are trained on.

        Raises:
            ArgumentError: no such task, none for a mode that trains one, or one for a joint mode.
        """
        if joint:
            if self.task is not None:
                fix = "leave --task out"
                raise ArgumentError(
                    f"mode {self.mode} trains all tasks together", got=self.task, where="--task", fix=fix
                )
            return list(recipe.tasks)
        if self.task is None:
            fix = f"give one of {', '.join(task.name for task in recipe.tasks)}"
            raise ArgumentError(f"mode {self.mode} trains one task at a time", where="--task", fix=fix)
        return [task_config(recipe, self.task)]


def finetune(options: FinetuneOptions, output: Output) -> None:
    """Fine-tune one adapter of a recipe.

    On several processes: [bold]accelerate launch -m tangora finetune ...[/bold]

    With --out RUN/adapters/MODE/TASK, [bold]tangora run[/bold] finds it there and does not train it again.
    """
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic
    from tangora.modes.contract import mode_of
    from tangora.support.files import refuse_output

    recipe = load_recipe(options.recipe, options.settings or [], trust_remote_code=options.trust_remote_code)
    config = recipe.finetune_config(options.mode)
    chosen = options.chosen(recipe, mode_of(config).joint)
    if given := [task.name for task in chosen if task.name in recipe.modes[options.mode].experts]:
        fix = "tangora run takes it as it is; leave it out of modes to train one"
        where = f"modes.{options.mode}.experts.{given[0]}"
        got = recipe.modes[options.mode].experts[given[0]]
        raise ArgumentError("the expert of this task is given", got=got, where=where, fix=fix)
    folders = {task.name: options.out / task.name if options.task is None else options.out for task in chosen}
    for folder in folders.values():
        refuse_output(folder, options.overwrite)
    if options.dry_run:
        _plan(options, recipe, config, chosen, output)
        return
    _train(options, recipe, config, chosen, folders, output)
    adapters: list[dict[str, Any]] = [
        {
            "adapter": folder,
            "task": task,
            "mode": options.mode,
            "training": _record(folder / "training.json"),
            "scores": (_record(folder / "tangora.json") or {}).get("scores"),
        }
        for task, folder in folders.items()
    ]
    document = adapters[0] if options.task is not None else {"adapters": adapters}
    lines = [line for one in adapters for line in _lines(one["task"], one["scores"])]
    output.result(document, *lines, *(f"adapter: {folder.resolve()}" for folder in folders.values()))


def _loaded(recipe: Recipe, chosen: Sequence[TaskSettings], output: Output) -> tuple[Base, list[Task]]:
    """Load the base and the tasks on the recipe's machine, and warn of rows that were cut."""
    from tangora.runs.machine import machine_of  # deferred: imports torch
    from tangora.tasks import load_base, load_task
    from tangora.tasks.cuts import cut_lines, cuts

    machine = machine_of(recipe)
    machine.use_threads()
    base = load_base(recipe.base, machine)
    tasks = [load_task(task, base, recipe.seed) for task in chosen]
    lines = cut_lines({task.name: cuts(task) for task in tasks}, ("train", "validation"))
    output.note(*(f"warning: {line}" for line in lines))
    return base, tasks


def _record(path: Path) -> dict[str, Any] | None:
    from tangora.support.files import read_json  # deferred: --help needs none of it

    return read_json(path) if path.is_file() else None


def _lines(task: str, scores: Mapping[str, Any] | None) -> Iterator[str]:
    """What an adapter scores in its expansion and in the ordinary network, line by line."""
    if scores and task in (scores.get("as_weights") or ()):
        from tangora.support.shown import decimal  # deferred: --help needs none of it

        own, other = (decimal(float(scores[name][task])) for name in ("tasks", "as_weights"))
        yield f"{task} on {scores.get('rows')} {scores.get('split')} rows: {own} in the expansion"
        yield f"  {other} in the ordinary network with its weights, as plain peft loads it: use tangora predict"


def _plan(
    options: FinetuneOptions, recipe: Recipe, config: FinetuneConfig, chosen: Sequence[TaskSettings], output: Output
) -> None:
    """Print what the rows are like, and what the training takes; write nothing."""
    from tangora.cli.rows import overview_document, overview_lines, overview_table  # deferred: with rich's tables
    from tangora.modes.contract import mode_of
    from tangora.modes.memory import Memory, memory_of
    from tangora.modes.timing import fits, step_seconds
    from tangora.runs.machine import machine_of
    from tangora.support.sizes import size_text
    from tangora.tasks import load_base
    from tangora.tasks.overview import surveyed

    machine, mode = machine_of(recipe), mode_of(config)
    machine.use_threads()
    with output.progress() as progress:
        progress.begin("load base and data", 1 + len(chosen))
        base = load_base(recipe.base, machine)
        mode.check(base, config)
        progress.advance(detail=recipe.base.model)
        tasks, rows = [], {}
        for settings in chosen:
            task, rows[settings.name] = surveyed(settings, base, recipe.seed)
            tasks.append(task)
            progress.advance(detail=settings.name)
        progress.end()
        memory = Memory.most([memory_of(base, task, config, recipe.evaluation.batch_size) for task in tasks])
        progress.begin("time a few steps", 0)
        step = step_seconds(base, tasks, config) if fits(memory, machine) else None
        progress.end()
    weight, training = mode.footprint(base, config), config.training
    document = {
        "dry_run": True,
        "mode": options.mode,
        "tasks": [task.name for task in tasks],
        "rows": overview_document(rows),
        **{"steps": training.steps, "batch_size": training.batch_size, "learning_rate": config.learning_rate},
        **{"seconds_per_step": step, "seconds": None if step is None else step * training.steps},
        **{"sites": weight.sites, "trainable": weight.trainable, "size": weight.size, "memory": memory},
    }
    output.result(
        document,
        overview_table(rows),
        *(line for one in rows.values() for line in overview_lines(one)),
        "",
        f"{options.mode} · {'+'.join(rows)}: {weight.sites} sites, {weight.trainable:,} numbers, "
        f"{size_text(weight.size)} on disk",
        f"memory, estimated: {memory}",
        _time(training.steps, step),
    )


def _time(steps: int, step: float | None) -> str:
    from tangora.progress import duration  # deferred: --help needs none of it

    if step is None:
        return f"time of {steps} steps: not measured, since a training may take more memory than is free"
    return f"time of {steps} steps, by a few of them: {duration(steps * step)}, {step:.2g} s each; scoring takes more"


def _train(
    options: FinetuneOptions,
    recipe: Recipe,
    config: FinetuneConfig,
    chosen: Sequence[TaskSettings],
    folders: Mapping[str, Path],
    output: Output,
) -> None:
    from tangora.modes.contract import Bench, reporting  # deferred: imports torch
    from tangora.modes.finetuning import train_to
    from tangora.modes.stage import stage_key

    base, tasks = _loaded(recipe, chosen, output)
    scratch = options.out.parent / f".{options.out.name}.training"
    prints = {task.name: task.fingerprint for task in tasks}
    key = stage_key(config, base.identity, prints, recipe.base.family, [task.metric for task in chosen])
    with output.progress() as progress:
        progress.begin(f"{options.mode} · {'+'.join(folders)}", config.training.steps)
        bench = Bench(base, scratch, on_step=reporting(progress, None))
        train_to(bench, tasks, config, folders, overwrite=options.overwrite, extra={"stage": key})
        progress.end()


COMMAND = Command(finetune, example="tangora finetune quickstart --task digits --out adapters/digits")
