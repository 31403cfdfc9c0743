"""``tangora predict``: an adapter's answers to new rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import FromHub, Options, OverwriteOption, SameBaseOption
from tangora.cli.output import Output
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tangora.evaluation.kept import Kept
    from tangora.evaluation.predictor import Predictor
    from tangora.progress import Progress
    from tangora.tasks.sources import Table

__all__ = ["COMMAND", "PredictOptions", "predict"]

_ROWS, _BASE = "Rows", "Base and machine"
_SHOWN = 20  # rows of a file that are printed
_CLASSES = 12  # classes whose counts are printed


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """The adapter, its task, the rows and the output."""

    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER", help="Trained or fused; or a checkpoint with merged adapters. A folder, or org/name."
        ),
        FromHub("any"),
    ]
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="One that the adapter records; not needed if it is the only one.",
            autocompletion=completion.recorded_tasks,
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write all answers: .jsonl, .csv or .parquet, with the rows' columns."
        ),
    ] = None
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Of every class, not only of the answer.")] = (
        False
    )
    overwrite: OverwriteOption = False
    texts: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A row; may be repeated.", rich_help_panel=_ROWS)
    ] = None
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="A row; may be repeated.", rich_help_panel=_ROWS),
    ] = None
    file: Annotated[
        Path | None,
        typer.Option(
            "--in",
            metavar="FILE",
            help="Many: .parquet, .csv, .jsonl, .npz, or a folder of images.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Default: what tangora.json names.", rich_help_panel=_BASE),
    ] = None
    same_base: SameBaseOption = False
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-code", help="Run code from the base model's repository. Read it before.", rich_help_panel=_BASE
        ),
    ] = False
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...", rich_help_panel=_BASE)] = "auto"
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.", rich_help_panel=_BASE)] = (
        "float32"
    )
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Rows per forward pass.", rich_help_panel=_BASE)
    ] = 64

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            ArgumentError: no rows, or rows in several ways; or an output of an unknown kind.
        """
        given = [name for name in ("--text", "--image", "--in") if self._rows()[name]]
        if len(given) != 1:
            fix = "give --text TEXT or --image FILE, as often as there are rows, or --in FILE"
            what = "rows are given in one way" if given else "there are no rows"
            raise ArgumentError(what, got=", ".join(given) or "none", where="predict", fix=fix)
        if self.overwrite and self.out is None:
            raise ArgumentError("nothing is written", got=True, where="--overwrite", fix="give --out, or leave it out")

    def _rows(self) -> dict[str, Any]:
        return {"--text": self.texts, "--image": self.images, "--in": self.file}


def predict(options: PredictOptions, output: Output) -> None:
    """Answer new rows with an adapter, as it was trained and scored.

    Everything that this needs is in the adapter's folder: the base's name, the labels, how rows are read, the head. A
    tangent adapter answers in its expansion.
    """
    options.check()
    if options.out is not None:
        from tangora.evaluation.answer_files import check_suffix  # deferred: --help needs none of it
        from tangora.support.files import refuse_existing

        check_suffix(options.out)
        inputs = [options.adapter, *filter(None, [options.file]), *(options.images or ())]
        refuse_existing(options.out, options.overwrite, inputs)
    with output.progress() as progress:
        table, kept = _rows_of(options)
        predictor = _predictor(options, progress)
        _refuse_other_rows(options, predictor)
        act = _printed if options.out is None else _written
        document, shown = act(options, predictor, table, kept, progress)
    output.result({"adapter": options.adapter, "task": predictor.task, "labels": predictor.labels, **document}, *shown)


def _rows_of(options: PredictOptions) -> tuple[Table, Kept]:
    """Return the rows, and their columns as they are."""
    from tangora.evaluation.kept import kept_columns, kept_rows  # deferred: imports torch
    from tangora.tasks.recorded import read_inputs
    from tangora.tasks.rows import table_of

    if options.file is not None:
        table = read_inputs(options.file, options.task or options.adapter.name)
        return table, kept_rows(options.file, table)
    if options.texts:
        return table_of(options.texts, "--text"), kept_columns({"text": options.texts})
    images = [str(path) for path in options.images or ()]
    return table_of(images, "--image"), kept_columns({"image": images})


def _predictor(options: PredictOptions, progress: Progress) -> Predictor:
    from tangora.evaluation.predictor import Predictor  # deferred: imports torch
    from tangora.modes.task_models import open_task
    from tangora.support.machine import Machine

    machine = Machine.resolve(options.device, options.dtype, "auto")
    machine.use_threads()
    progress.begin("load base and adapter", 1)
    opened = open_task(
        options.adapter,
        options.task,
        options.base,
        machine,
        trust=options.trust_remote_code,
        same_base=options.same_base,
    )
    made = Predictor(opened, owned=True)
    progress.advance()
    progress.end()
    return made


def _refuse_other_rows(options: PredictOptions, predictor: Predictor) -> None:
    """Refuse images for a task of texts, whose names would be read as texts, and texts for one of images."""
    given = {"texts": ("--text", options.texts), "images": ("--image", options.images)}
    for kind, (name, rows) in given.items():
        if rows and predictor.reads not in (kind, None):
            fix = f"give {given[predictor.reads][0]}, or --in FILE"
            raise ArgumentError(f"the task reads {predictor.reads}", got=name, where=f"task {predictor.task}", fix=fix)


def _written(
    options: PredictOptions, predictor: Predictor, table: Table, kept: Kept, progress: Progress
) -> tuple[Mapping[str, Any], list[RenderableType]]:
    """Write the answers to all rows; return what was written."""
    from tangora.evaluation.answer_files import answers_written_to  # deferred: imports torch

    assert options.out is not None
    counts: Counter[str] = Counter()
    written = answers_written_to(
        options.out,
        kept,
        predictor.kind,
        predictor.labels,
        every=options.probabilities,
        overwrite=options.overwrite,
    )
    with written as write:
        for answers in predictor.blocks(table, batch_size=options.batch_size, progress=progress):
            write(answers)
            counts.update(answers if predictor.kind == "classes" else ())
    rows = "1 row" if len(table) == 1 else f"{len(table):,} rows"
    lines = [f"{predictor.task}: answered {rows}", *_counted(counts)]
    if kept.left_out:
        lines.append(f"columns that are left out, since they are neither texts nor numbers: {', '.join(kept.left_out)}")
    document = {"rows": len(table), "counts": dict(counts), "left_out": kept.left_out, "out": options.out}
    return document, [*lines, f"answers: {options.out.resolve()}"]


def _counted(counts: Counter[str]) -> Iterator[str]:
    """Yield how often each class was answered, the most frequent first."""
    for name, count in counts.most_common(_CLASSES):
        yield f"  {count:>8}  {name}"
    if len(counts) > _CLASSES:
        yield f"  and {len(counts) - _CLASSES} more classes"


def _printed(
    options: PredictOptions, predictor: Predictor, table: Table, kept: Kept, progress: Progress
) -> tuple[Mapping[str, Any], list[RenderableType]]:
    """Return answers as a document and as a table: of a file, a person sees the first ones, a program gets all."""
    from tangora.cli.tables import answer_table  # deferred: imports torch
    from tangora.evaluation.answer_files import answer_columns
    from tangora.evaluation.row_answers import joined

    rows = len(table)
    if options.file is not None and not options.json:
        table = table.select(range(min(_SHOWN, rows)))
    answers = joined(list(predictor.blocks(table, batch_size=options.batch_size, progress=progress)))
    columns = answer_columns(answers, every=options.probabilities)
    listed = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    document = {"rows": len(listed), "answers": listed}
    if options.json:
        return document, []
    given = options.texts or [str(path) for path in options.images or ()]
    shown: list[RenderableType] = [answer_table(predictor.task, given or predictor.examples(table), columns)]
    if len(table) < rows:
        shown.append(f"the first {len(table)} of {rows} rows; all of them: --out FILE, or --json")
    return document, shown


COMMAND = Command(
    predict,
    example='tangora predict adapters/sst2 --text "a touching film"',
    examples={
        _ROWS: "tangora predict fused --task sst2 --in reviews.csv --out answers.csv",
        _BASE: "tangora predict fused --task sst2 --in reviews.csv --base moved/base --device cuda --out answers.jsonl",
    },
)
