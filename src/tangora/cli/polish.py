"""``tangora polish``: train a fused adapter towards its experts, on rows without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options, OverwriteOption, TrustOption
from tangora.cli.output import Output
from tangora.cli.weights import parse_parameters, parse_weights
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.adapters.metadata import PolishedInfo
    from tangora.config.polish import PolishSettings
    from tangora.progress import Progress
    from tangora.tasks import Base, Task

__all__ = ["COMMAND", "PolishOptions", "polish"]

_ROWS, _START = "Rows", "Start"


@dataclass(frozen=True, kw_only=True)
class PolishOptions(Options):
    """The experts, their rows, the start, and the settings of the training."""

    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER", help="The experts: one of each task.")]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the polished adapter.")]
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Largest rank of a site.")] = 16
    rows: Annotated[int, typer.Option("--rows", min=2, help="Most rows per task; their labels are not read.")] = 256
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps; each sees every task.")] = 100
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A further setting, such as student=l-lora.",
            autocompletion=completion.polish_settings,
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the rows that are drawn, and of their order.")] = 0
    overwrite: OverwriteOption = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")] = False
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=FILE",
            help="Rows of a task's inputs: .parquet, .csv, .jsonl, .npz, or a folder of images.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="With --data: the base. Default: what tangora.json names.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Take base and rows from a recipe.",
            autocompletion=completion.recipes,
            rich_help_panel=_ROWS,
        ),
    ] = None
    recipe_settings: Annotated[
        list[str] | None,
        typer.Option("--recipe-set", metavar="KEY=VALUE", help="Change one key of the recipe.", rich_help_panel=_ROWS),
    ] = None
    trust_remote_code: TrustOption = False
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="FUSED", help="Start from this adapter.", rich_help_panel=_START),
    ] = None
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="Or fuse the experts by this method.",
            autocompletion=completion.methods,
            rich_help_panel=_START,
        ),
    ] = "task_arithmetic"
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", "-w", metavar="NUMBERS", help="Of that fusion; default: 0.5.", rich_help_panel=_START
        ),
    ] = None
    same_base: Annotated[
        bool,
        typer.Option("--same-base", help="Accept adapters that were made for another base.", rich_help_panel=_START),
    ] = False

    def chosen(self) -> PolishSettings:
        """The settings of the training.

        Raises:
            ArgumentError: one is unknown or invalid, or given twice.
        """
        from tangora.config.polish import PolishSettings  # deferred: --help needs no pydantic
        from tangora.support.validation import validate

        given = {"rank": self.rank, "rows": self.rows, "steps": self.steps}
        more = parse_parameters(self.settings)
        if twice := [name for name in more if name in given]:
            fix = f"give it as --{twice[0]}"
            raise ArgumentError("a setting with an option of its own", got=twice[0], where="--set", fix=fix)
        return validate(PolishSettings, {**given, **more}, "--set", ArgumentError)

    def files(self) -> dict[str, Path]:
        """Task -> file of its rows.

        Raises:
            ArgumentError: neither ``--data`` nor ``--recipe``, both, or not NAME=FILE.
        """
        if bool(self.data) == (self.recipe is not None):
            fix = "give --data NAME=FILE for every task; or --recipe RECIPE, whose rows are used"
            got = "both" if self.data else "neither"
            raise ArgumentError("polish needs rows of the tasks' inputs", got=got, where="--data", fix=fix)
        if self.recipe is None and self.recipe_settings:
            raise ArgumentError(
                "there is no recipe to change", where="--recipe-set", fix="give --recipe, or leave it out"
            )
        if self.recipe is not None and self.base is not None:
            fix = "change it with --recipe-set base.model=..."
            raise ArgumentError("the recipe names the base", got=self.base, where="--base", fix=fix)
        files: dict[str, Path] = {}
        for text in self.data or ():
            name, equals, file = text.partition("=")
            if not equals or not name or not file:
                raise ArgumentError("rows are NAME=FILE", got=text, where="--data", fix="for example sst2=reviews.csv")
            if name in files:
                raise ArgumentError("two files for one task", got=name, where="--data", fix="join them into one")
            files[name] = Path(file)
        return files


def polish(options: PolishOptions, output: Output) -> None:
    """Train a fused adapter towards its experts' answers on rows without labels, at a fixed rank.

    The experts are fused (or --start is taken), cut to the rank, and trained to answer as each expert does on its own
    task. The result is a plain adapter. No label is read: a column of labels is ignored.
    """
    settings, files = options.chosen(), options.files()
    from tangora.support.files import refuse_output  # deferred: --help needs none of it

    refuse_output(options.out, options.overwrite, [*options.adapters, *filter(None, [options.start]), *files.values()])
    from tangora.polishing.training import polish as train  # deferred: imports torch

    with output.progress() as progress:
        base, tasks = _from_recipe(options, progress) if options.recipe is not None else _from_files(options, files)
        if options.dry_run:
            output.result(*_plan(options, settings, tasks))
            return
        made = train(
            options.adapters,
            base,
            tasks,
            start=options.start,
            method=options.method,
            weights=0.5 if options.weights is None else parse_weights(options.weights),
            seed=options.seed,
            out=options.out,
            scratch=options.out.parent / f".{options.out.name}.training",
            same_base=options.same_base,
            overwrite=options.overwrite,
            progress=progress,
            **settings.model_dump(),
        )
    info = made.metadata.polished
    assert info is not None
    document = {**info.model_dump(mode="json"), "adapter": options.out, "sites": len(made.updates)}
    output.result(document, *polished_lines(info), f"adapter: {options.out.resolve()}")


def polished_lines(info: PolishedInfo) -> Iterator[str]:
    """What a polish did, line by line."""
    rows = sorted(set(info.rows.values()))
    count = str(rows[0]) if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    settings = info.settings
    experts = "1 expert" if len(info.experts) == 1 else f"{len(info.experts)} experts"
    yield f"polished towards {experts} on {count} {info.split} rows each, without labels"
    yield f"student: {settings['student']}, rank {settings['rank']}; step {info.step} of {settings['steps']} was kept"
    if info.mass is not None and info.mass < 1:
        yield f"of each token's probability, the {settings['top']} most likely tokens have {info.mass:.4f}"
    yield f"divergence from the experts, in nats, on {info.measured_on.replace('the same', 'the same rows')}:"
    width = max(map(len, info.before))
    for name, before in info.before.items():
        yield f"  {name:<{width}}  {before:.4f} → {info.after[name]:.4f}"


def _from_recipe(options: PolishOptions, progress: Progress) -> tuple[Base, list[Task]]:
    """Load base and tasks of the recipe: those that the experts, or their folders, are named by.

    Raises:
        ArgumentError: the recipe has no such task.
    """
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic
    from tangora.runs.runner import prepare

    trust = options.trust_remote_code
    recipe = load_recipe(str(options.recipe), options.recipe_settings or [], trust_remote_code=trust)
    named = _named(options.adapters)
    known = {task.name for task in recipe.tasks}
    if odd := [name for name in named.values() if name not in known]:
        fix = f"name the adapters' folders as the recipe's tasks: {', '.join(sorted(known))}"
        raise ArgumentError("the recipe has no such task", got=odd[0], where="--recipe", fix=fix)
    by_name = {task.name: task for task in recipe.tasks}
    chosen = [by_name[name] for name in named.values()]  # in the order of the adapters
    return prepare(recipe.model_copy(update={"tasks": chosen}), progress)


def _from_files(options: PolishOptions, files: Mapping[str, Path]) -> tuple[Base, list[Task]]:
    """Load the base that the experts name, and the rows of the files as their records describe."""
    from tangora.adapters.heads import read_records  # deferred: imports torch
    from tangora.config.tasks import base_settings
    from tangora.support.machine import Machine
    from tangora.tasks import load_base
    from tangora.tasks.recorded import read_inputs, recorded_task

    named = _named(options.adapters)
    folders = {task: folder for folder, task in named.items()}
    if odd := sorted(files.keys() ^ folders.keys()):
        where = "--data" if odd[0] not in files else f"--data {odd[0]}"
        what = "no rows for this task" if odd[0] not in files else "no expert of this task"
        raise ArgumentError(
            what, got=odd[0], where=where, fix=f"name the tasks {', '.join(sorted(folders))}, once each"
        )
    records = {}
    for task, folder in folders.items():
        found = read_records(folder)
        if task not in found:
            fix = "give --recipe, whose task is described there; adapters of peft alone have no record"
            raise ArgumentError("the adapter does not say how its rows are read", got=task, where=folder, fix=fix)
        records[task] = found[task]
    family, settings = _common(records)
    machine = Machine.resolve("auto", "float32", "auto")
    machine.use_threads()
    # What an adapter records may be somebody else's: it does not decide whether code runs, nor which model is loaded
    # beyond what tangora.json names.
    fixed: dict[str, Any] = {"family": family, "model": _model(options), "revision": _revision(options)}
    fixed["trust_remote_code"] = options.trust_remote_code
    base = load_base(base_settings({**settings, **fixed}, "--base"), machine)
    # in the order of the adapters, which have no names of their own if peft alone made them
    return base, [recorded_task(name, records[name], base, read_inputs(files[name], name)) for name in folders]


def _named(folders: list[Path]) -> dict[Path, str]:
    """Return adapter's folder -> its task: the recorded one, or else the folder's name."""
    from tangora.adapters.metadata import read_metadata  # deferred: imports pydantic
    from tangora.support.files import reachable

    named = {}
    for folder in folders:
        metadata = read_metadata(reachable(folder))
        named[folder] = (metadata.task if metadata is not None else None) or folder.resolve().name
    return named


def _common(records: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the family and base settings on which all records agree.

    Raises:
        ArgumentError: two differ.
    """
    (first, record), *others = records.items()
    for name, other in others:
        if (other.family, other.base) != (record.family, record.base):
            what = f"{first} and {name} were trained with other settings of the base"
            fix = "polish experts that read their inputs in the same way"
            raise ArgumentError(what, got=f"{record.base} and {other.base}", where="heads", fix=fix)
    return record.family, dict(record.base)


def _model(options: PolishOptions) -> str:
    """Return the name or folder of the base.

    Raises:
        ArgumentError: nothing names it.
    """
    from tangora.adapters.metadata import read_metadata  # deferred: imports pydantic

    if options.base is not None:
        return options.base
    metadata = read_metadata(options.adapters[0])
    if metadata is None or metadata.base.model is None:
        raise ArgumentError("nothing names the base", where="--base", fix="give its folder or Hub id")
    return metadata.base.model


def _revision(options: PolishOptions) -> str | None:
    """Return the revision of the base that the first adapter names, unless another base is given."""
    from tangora.adapters.metadata import read_metadata  # deferred: imports pydantic

    metadata = read_metadata(options.adapters[0]) if options.base is None else None
    return metadata.base.revision if metadata is not None else None


def _plan(options: PolishOptions, settings: PolishSettings, tasks: list[Task]) -> tuple[dict[str, Any], str]:
    """Return what would be done: rows, and the work in rows that pass forward through the model."""
    from tangora.support.seams import FAMILIES  # deferred: --help needs none of it

    rows = {task.name: min(settings.rows, len(task.splits.get(settings.split, ()))) for task in tasks}
    classes = all(FAMILIES.get(task.family).logits_over == "classes" for task in tasks)
    passes = settings.passes(list(rows.values()), classes=classes)
    document = {"dry_run": True, "rows": rows, "passes": passes, "settings": settings.model_dump(mode="json")}
    line = f"{len(tasks)} experts answer {sum(rows.values())} rows; {settings.steps} steps of "
    line += f"{settings.batch_size} rows a task: about {passes:,.0f} rows through the model"
    return document, line


COMMAND = Command(
    polish,
    example="tangora polish adapters/sst2 adapters/snips --data sst2=a.csv --data snips=b.csv --out polished",
    examples={
        _ROWS: "tangora polish run/adapters/lora/* --recipe text7 --recipe-set data.root=DATA --out polished",
        _START: "tangora polish adapters/a adapters/b --recipe mine.yaml --start fused --out polished",
    },
)
