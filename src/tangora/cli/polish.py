"""``tangora polish``: train a fused adapter towards its experts, on rows without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import FromHub, Options, OverwriteOption, TrustOption
from tangora.cli.output import Output
from tangora.cli.ranks import fused_cost
from tangora.cli.row_files import ROWS, DataOption, RecipeOption, RecipeSettings, row_files
from tangora.cli.weights import parse_parameters, parse_weights
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.adapters.metadata import PolishedInfo
    from tangora.config.polish import PolishSettings
    from tangora.progress import Progress
    from tangora.tasks import Base, Task

__all__ = ["COMMAND", "PolishOptions", "polish"]

_START = "Start"


@dataclass(frozen=True, kw_only=True)
class PolishOptions(Options):
    """The experts, their rows, the start, and the settings of the training."""

    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER", help="The experts, one of each task: folders, or org/name of the Hub."),
        FromHub("adapter"),
    ]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the polished adapter.")]
    rank: Annotated[
        int,
        typer.Option(
            "--rank", "-r", min=0, help="Largest rank of a site; 0: that of the start, or for entries full rank."
        ),
    ] = 16
    rows: Annotated[
        int, typer.Option("--rows", min=2, help="Most rows per task; their labels count with --set labels=SHARE.")
    ] = 256
    steps: Annotated[int, typer.Option("--steps", min=0, help="Optimizer steps; each sees every task.")] = 100
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
    data: DataOption = None
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="With --data: the base. Default: what tangora.json names.",
            rich_help_panel=ROWS,
        ),
    ] = None
    recipe: RecipeOption = None
    recipe_settings: RecipeSettings = None
    trust_remote_code: TrustOption = False
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="FUSED", help="Start from this adapter.", rich_help_panel=_START),
        FromHub("adapter"),
    ] = None
    present: Annotated[
        Path | None,
        typer.Option(
            "--present",
            metavar="FUSED",
            help="Add the experts to this adapter, which answers for the tasks that it has already.",
            rich_help_panel=_START,
        ),
        FromHub("adapter"),
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

    def everyone(self) -> list[Path]:
        """Every adapter that is read."""
        return [*self.adapters, *filter(None, [self.start, self.present])]

    def chosen(self) -> PolishSettings:
        """The settings of the training.

        Raises:
            ArgumentError: one is unknown or invalid, or given twice.
        """
        from tangora.config.polish import PolishSettings  # deferred: --help needs no pydantic
        from tangora.support.validation import validate

        given = {"rank": self.rank or None, "rows": self.rows, "steps": self.steps}
        more = parse_parameters(self.settings)
        if twice := [name for name in more if name in given]:
            fix = f"give it as --{twice[0]}"
            raise ArgumentError("a setting with an option of its own", got=twice[0], where="--set", fix=fix)
        return validate(PolishSettings, {**given, **more}, "--set", ArgumentError)

    def refuse_idle(self) -> None:
        """Refuse how the experts are to be fused if nothing is.

        Raises:
            ArgumentError: names the option.
        """
        if self.start is None:
            return
        given = {"--weights": self.weights is not None, "--method": self.method != type(self).method}
        for name, is_given in given.items():
            if is_given:
                fix = f"leave {name} out, or --start"
                raise ArgumentError("nothing is fused: the start is given", got=str(self.start), where=name, fix=fix)

    def files(self) -> dict[str, Path]:
        """Task -> file of its rows.

        Raises:
            ArgumentError: neither ``--data`` nor ``--recipe``, both, or not NAME=FILE.
        """
        return row_files("polish", self.data, self.recipe, self.recipe_settings, self.base)


def polish(options: PolishOptions, output: Output) -> None:
    """Train a fused adapter towards its experts' answers on rows without labels, at a fixed rank.

    The experts are fused (or --start is taken), cut to the rank, and trained to answer as each expert does on its own
    task. The result is a plain adapter. No label is read, and a column of labels is ignored, but with --set labels=0.5
    (any share up to 1): then the labels of classes are followed beside the answers.
    """
    settings, files = options.chosen(), options.files()
    options.refuse_idle()
    from tangora.support.files import refuse_output  # deferred: --help needs none of it

    refuse_output(options.out, options.overwrite, [*options.everyone(), *files.values()])
    from tangora.adapters.saving import refuse_file_name  # deferred: imports torch
    from tangora.polishing.polish import polish as train
    from tangora.tasks.cuts import cut_lines, cuts

    refuse_file_name(options.out)
    with output.progress() as progress:
        base, tasks = _base_and_tasks(options, settings, files, progress)
        for line in cut_lines({task.name: cuts(task) for task in tasks}, [settings.split]):
            progress.note(f"warning: {line}")
        if options.dry_run:
            output.result(*_plan(options, settings, tasks))
            return
        made = train(
            options.adapters,
            base,
            tasks,
            start=options.start,
            present=options.present,
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
    cost = fused_cost(made, options.out, [*options.adapters, *filter(None, [options.present])])
    document = {**info.model_dump(mode="json"), "adapter": options.out, "sites": len(made.updates)}
    document |= {} if cost is None else cost.to_dict()
    lines = [*polished_lines(info), *([] if cost is None else [cost.line(option="cut to rank {}, it")])]
    output.result(document, *lines, f"adapter: {options.out.resolve()}")


def _base_and_tasks(
    options: PolishOptions, settings: PolishSettings, files: Mapping[str, Path], progress: Progress
) -> tuple[Base, list[Task]]:
    """Load the base and the rows, from the recipe if one is given, else as the adapters record."""
    from tangora.cli.experts import from_files, from_recipe  # deferred: imports torch

    trust, present = options.trust_remote_code, options.present
    if options.recipe is None:
        labelled = settings.labels > 0
        return from_files(options.adapters, files, options.base, present=present, labelled=labelled, trust=trust)
    changes = options.recipe_settings or []
    return from_recipe(options.adapters, options.recipe, changes, progress, present=present, trust=trust)


def polished_lines(info: PolishedInfo) -> Iterator[str]:
    """What a polish did, line by line."""
    rows = sorted(set(info.rows.values()))
    count = str(rows[0]) if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    settings = info.settings
    experts = "1 expert" if len(info.experts) == 1 else f"{len(info.experts)} experts"
    labels = settings.get("labels")
    with_or_without = f"whose labels have {labels:g} of the loss" if labels else "without labels"
    yield f"polished towards {experts} on {count} rows each, {with_or_without}"
    if any(info.recombined.values()):
        yield f"and on {sum(info.recombined.values())} rows that were made of parts of these"
    kept = f"step {info.step} of {settings['steps']} was kept"
    if settings.get("objective") == "layers":
        kept = f"{settings['steps']} steps of every block"
    if settings["steps"] and not info.step:
        kept = "no step was better than the start"
    rank = settings["rank"] or "of the start" if settings["student"] != "entries" else settings["rank"] or "full"
    yield f"student: {settings['student']}, rank {rank}; {kept}"
    if settings.get("initial") == "layers" and info.after == info.before:
        yield "the start in closed form was no nearer to the experts: the result is the fusion, cut to the rank"
    elif settings.get("initial") == "layers":
        yield f"start in closed form, cut with an error of {info.start_error:.3g} of the layers' outputs"
    if info.mass is not None and info.mass < 1:
        yield f"of each token's probability, the {settings['top']} most likely tokens have {info.mass:.4f}"
    what = "loss from answers and labels" if labels else "divergence from the experts"
    yield f"{what}, in nats, on {info.measured_on.replace('the same', 'the same rows')}:"
    width = max(map(len, info.before))
    for name, before in info.before.items():
        yield f"  {name:<{width}}  {before:.4f} → {info.after[name]:.4f}"


def _plan(options: PolishOptions, settings: PolishSettings, tasks: list[Task]) -> tuple[dict[str, Any], str]:
    """Return what would be done: rows, and the work in rows that pass forward through the model."""
    rows = {task.name: min(settings.rows, len(task.splits.get(settings.split, ()))) for task in tasks}
    classes = all(task.form.logits_over == "classes" for task in tasks)
    passes = settings.passes(list(rows.values()), classes=classes)
    document = {"dry_run": True, "rows": rows, "passes": passes, "settings": settings.model_dump(mode="json")}
    answered = sum(settings.answered(count, classes=classes) for count in rows.values())
    line = f"{len(tasks)} experts answer {answered} rows; {settings.steps} steps "
    line += "of every block with " if settings.objective == "layers" else "of "
    line += f"{settings.batch_size} rows a task: about {passes:,.0f} rows through the model"
    return document, line


COMMAND = Command(
    polish,
    example="tangora polish adapters/sst2 adapters/snips --data sst2=a.csv --data snips=b.csv --out polished",
    examples={
        ROWS: "tangora polish run/adapters/lora/* --recipe text7 --recipe-set data.root=DATA --out polished",
        _START: "tangora polish adapters/a adapters/b --recipe mine.yaml --start fused --out polished",
    },
)
