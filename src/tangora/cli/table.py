"""``tangora table``: the scores of runs as a table for a paper."""

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

__all__ = ["COMMAND", "TableOptions", "table"]

_LOOK = "Look"
_DIMENSIONS = "run, mode, method, n_tasks or task"


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """The runs, and what is shown of them."""

    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of finished runs.")]
    rows: Annotated[str, typer.Option("--rows", help=f"{_DIMENSIONS}.")] = "method"
    columns: Annotated[
        str, typer.Option("--columns", help=f"{_DIMENSIONS}. Others that vary are further columns of names.")
    ] = "task"
    value: Annotated[str, typer.Option("--value", help="score, or kept: the share of the own expert's.")] = "score"
    split: Annotated[str, typer.Option("--split", help="test or validation.", autocompletion=completion.splits)] = (
        "test"
    )
    n_tasks: Annotated[
        int | None, typer.Option("--n-tasks", metavar="N", help="Fusions of N tasks; default: of most.")
    ] = None
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Default: the first one of each task.", autocompletion=completion.metrics),
    ] = None
    methods: MethodsOption = None
    modes: ModesOption = None
    over: Annotated[
        str | None, typer.Option("--over", help="seed: mean and standard deviation over runs with other seeds.")
    ] = None
    oracle: Annotated[bool, typer.Option("--oracle", help="Also what was chosen on test rows, marked.")] = False
    format: Annotated[str, typer.Option("--format", help="md, latex or csv.", rich_help_panel=_LOOK)] = "md"
    bold: Annotated[
        str, typer.Option("--bold", help="best of each column; all: experts compete too; none.", rich_help_panel=_LOOK)
    ] = "best"
    digits: DigitsOption = 3
    out: TableOutOption = None
    overwrite: OverwriteOption = False


def table(options: TableOptions, output: Output) -> None:
    """Print the scores of one or several runs as a table for a paper: Markdown, LaTeX or CSV.

    A mean over several metrics is marked. Experts and zero-shot are shown, and not bold unless asked.
    """
    from tangora.report.data import read_scored  # deferred: --help needs no readers
    from tangora.report.paper import TableSettings, paper_table

    settings = TableSettings(
        rows=options.rows,
        columns=options.columns,
        value=options.value,
        split=options.split,
        n_tasks=options.n_tasks,
        metric=options.metric,
        methods=options.methods or (),
        modes=options.modes or (),
        over=options.over,
        bold=options.bold,
        oracle=options.oracle,
        digits=options.digits,
    )
    made = paper_table([read_scored(run, options.metric) for run in options.runs], settings)
    text = made.as_text(options.format)
    if options.format == "csv":
        output.note(*made.notes)
    document = {
        "names": list(made.names),
        "columns": list(made.columns),
        "rows": [{"names": list(names), "values": [vars(cell) for cell in cells]} for names, cells in made.rows],
        "notes": list(made.notes),
    }
    write_or_print(output, document, text, options.out, overwrite=options.overwrite)


COMMAND = Command(
    table,
    example="tangora table runs/first --rows method --columns task",
    examples={_LOOK: "tangora table runs/first --format latex --digits 2 --out scores.tex"},
)
