"""``tangora compare``: paired tests between runs, or between the methods of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import DigitsOption, MethodsOption, ModesOption, Options, OverwriteOption, TableOutOption
from tangora.cli.output import Output
from tangora.cli.texts import write_or_print
from tangora.errors import ArgumentError

__all__ = ["COMMAND", "CompareOptions", "compare"]

_LOOK = "Look"


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """The runs, and the tests."""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run; its scores are subtracted.")]
    other: Annotated[Path | None, typer.Argument(metavar="RUN", help="Another one, on the same rows.")] = None
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="METHOD", help="Within one run: what the others are compared with."),
    ] = None
    methods: MethodsOption = None
    modes: ModesOption = None
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TASK", help="Only this one; repeatable.", autocompletion=completion.tasks),
    ] = None
    n_tasks: Annotated[int | None, typer.Option("--n-tasks", metavar="N", help="Only fusions of N tasks.")] = None
    permutations: Annotated[
        int, typer.Option("--permutations", metavar="N", help="Most exchanges of predictions; exact if no more.")
    ] = 10_000
    resamples: Annotated[
        int | None, typer.Option("--resamples", metavar="N", help="Of intervals; default: the recipe's.")
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Default: the recipe's.")] = None
    format: Annotated[str, typer.Option("--format", help="md, latex, csv or json.", rich_help_panel=_LOOK)] = "md"
    digits: DigitsOption = 3
    out: TableOutOption = None
    overwrite: OverwriteOption = False


def compare(options: CompareOptions, output: Output) -> None:
    """Test two runs, or the methods of one, against each other on the same test rows.

    For each mode, method and number of tasks: the difference of mean scores, a 95 % interval, a p-value, and the same
    after Holm's correction. Runs whose tasks, metrics or rows differ are refused.
    """
    from tangora.report.grid import FORMATS  # deferred: --help needs none of them
    from tangora.support.validation import did_you_mean

    known = [*FORMATS, "json"]
    if options.format not in known:
        fix = did_you_mean(options.format, known)
        raise ArgumentError("no such format", got=options.format, where="--format", fix=fix)
    from tangora.runs.compared import compare_runs  # deferred: imports torch
    from tangora.runs.comparison import CompareSettings

    settings = CompareSettings(
        options.baseline,
        options.methods or (),
        options.modes or (),
        options.tasks or (),
        options.n_tasks,
        options.permutations,
        options.resamples,
        options.seed,
    )
    made = compare_runs(options.run, options.other, settings)
    grid, document = made.grid(options.digits), made.to_dict()
    if options.format == "csv":
        output.note(*grid.notes)
    text = None if options.format == "json" else grid.as_text(options.format)
    write_or_print(output, document, text, options.out, overwrite=options.overwrite)


COMMAND = Command(
    compare,
    example="tangora compare runs/first --baseline average",
    examples={_LOOK: "tangora compare runs/first runs/second --format csv --out differences.csv"},
)
