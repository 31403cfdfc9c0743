"""``tangora new``: write a recipe with comments for rows of your own."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options, OverwriteOption
from tangora.cli.output import Output
from tangora.cli.terminal import in_notebook
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.config.drafting import DraftedTask

__all__ = ["COMMAND", "NewOptions", "new"]


@dataclass(frozen=True, kw_only=True)
class NewOptions(Options):
    """The rows, what they are, the base model, and the file of the recipe."""

    rows: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="FILE", help="A file of rows, or a folder of images; a task each."),
    ] = None
    test: Annotated[
        Path | None, typer.Option("--test", metavar="FILE", help="Test rows; default: cut from those of --from.")
    ] = None
    text: Annotated[
        str | None, typer.Option("--text", metavar="COLUMN", help="Column of texts, prompts or images.")
    ] = None
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="Column of labels, answers or tags.")
    ] = None
    family: Annotated[
        str | None,
        typer.Option("--family", help="Family; default: what fits the columns.", autocompletion=completion.families),
    ] = None
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Base model: a folder, or an id on the Hub.")
    ] = None
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The recipe; default: NAME.yaml of the rows.")
    ] = None
    overwrite: OverwriteOption = False


def new(options: NewOptions, output: Output) -> None:
    """Write a recipe with comments for rows of your own, after a look at them.

    In a terminal it asks for what is not given. The columns decide the family, unless it is given. Rows that cannot be
    used are refused, and nothing is written.
    """
    asks = _is_terminal() and not output.json and not output.quiet
    options = _completed(options, _asked if asks else None)
    assert options.rows
    assert options.base
    assert options.out
    from tangora.config.drafting import are_numbers, draft  # deferred: --help needs no pydantic
    from tangora.config.recipe import validate_text
    from tangora.support.files import refuse_existing, write_text

    refuse_existing(options.out, options.overwrite, [*options.rows, *([options.test] if options.test else [])])
    family, tasks = _tasks(options)
    text = draft(options.out.stem, family, options.base, tasks, options.out.parent)
    validate_text(text, str(options.out))
    write_text(options.out, text)
    document = {"recipe": options.out, "family": family, "base": options.base}
    document["tasks"] = {task.name: {"rows": task.rows, "classes": task.classes, **task.keys} for task in tasks}
    lines = [_line(task) for task in tasks]
    for task in tasks:
        if are_numbers(task.classes):
            advice = "if the number itself is to be predicted, add problem: regression to the task"
            output.note(f"{task.name}: the labels are numbers, and each is a class; {advice}")
    output.result(document, f"family: {family} ({tasks[0].why})", *lines, *_next(options.out, len(tasks)))


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and not in_notebook()


def _completed(options: NewOptions, ask: Callable[[str, str | None], str] | None) -> NewOptions:
    """Return the options with what is missing: asked for, or derived.

    Raises:
        ArgumentError: something is missing, and there is nobody to ask.
    """
    missing = [name for name, value in (("--from", options.rows), ("--base", options.base)) if not value]
    if ask is None and missing:
        fix = "give it; in a terminal, without --quiet and --json, tangora new asks"
        raise ArgumentError(f"{' and '.join(missing)} missing", where="tangora new", fix=fix)
    rows = options.rows or [Path(ask("File of rows, or folder of images", None))] if ask else options.rows
    assert rows
    if options.test is not None and len(rows) > 1:
        raise ArgumentError("--test is for one file of rows", got=len(rows), where="--from", fix="leave --test out")
    options = replace(options, rows=rows)
    if ask is not None:
        options = _confirmed(options, ask)
    default = Path(f"{rows[0].name.split('.')[0] or 'recipe'}.yaml")
    out = options.out or (Path(ask("Recipe", str(default))) if ask else default)
    return replace(options, out=out)


def _confirmed(options: NewOptions, ask: Callable[[str, str | None], str]) -> NewOptions:
    """Return the options with what a person says about family, columns and base."""
    from tangora.support.seams import FAMILIES  # deferred: --help needs no registry
    from tangora.tasks.looking import guess, source_of  # deferred: imports torch

    assert options.rows
    source = source_of(options.rows[0], options.test)
    found = guess(source, "new", family=options.family, text=options.text, label=options.label)
    if options.family is None:
        if found.columns:
            typer.echo(f"columns: {', '.join(found.columns)}", err=True)
        family = ask(f"Family ({', '.join(FAMILIES)})", found.family)
        if family != found.family:
            options = replace(options, family=family)
            found = guess(source, "new", family=family, text=options.text, label=options.label)
        options = replace(options, family=family)
    if len(options.rows or ()) == 1:
        text, label = (_column(found.keys, names) for names in (("text", "image", "tokens"), ("label", "tags")))
        if options.text is None and text is not None:
            options = replace(options, text=ask("Column of texts", text))
        if options.label is None and label is not None:
            options = replace(options, label=ask("Column of labels", label))
    return options if options.base else replace(options, base=ask("Base model (a folder, or an id on the Hub)", None))


def _column(keys: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((str(keys[name]) for name in names if name in keys), None)


def _asked(question: str, default: str | None) -> str:
    return str(typer.prompt(question, default=default, err=True))


def _tasks(options: NewOptions) -> tuple[str, list[DraftedTask]]:
    """Return the family, and a task for each file, whose rows were read and checked.

    Raises:
        ArgumentError: no such family, or the files are of different ones.
        DataError: rows cannot be used.
    """
    from tangora.config.drafting import DraftedTask, slug  # deferred: --help needs no pydantic
    from tangora.support.seams import FAMILIES
    from tangora.support.validation import did_you_mean
    from tangora.tasks.looking import checked, guess, source_of  # deferred: imports torch

    if options.family is not None and options.family not in FAMILIES:
        fix = did_you_mean(options.family, list(FAMILIES))
        raise ArgumentError("no such family", got=options.family, where="--family", fix=fix)
    tasks: list[DraftedTask] = []
    family = options.family
    for path in options.rows or ():
        name = slug(path.name.split(".")[0])
        name = name if name not in {task.name for task in tasks} else f"{name}-{len(tasks) + 1}"
        source = source_of(path, options.test)
        found = guess(source, name, family=family, text=options.text, label=options.label)
        family = family or found.family
        classes, parts = checked(found, source, name)
        rows = {split: len(targets) for split, targets in parts.items()}
        counts = Counter(one for targets in parts.values() for one in targets if isinstance(one, int))
        counted = {one: counts[number] for number, one in enumerate(classes)} if counts else {}
        tasks.append(DraftedTask(name, source, found.keys, rows, counted, found.why))
    return str(family), tasks


def _line(task: DraftedTask) -> str:
    rows = ", ".join(f"{count} {split}" for split, count in task.rows.items())
    return f"{task.name}: {rows}{_classes(task.classes)}"


def _classes(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    least = min(counts, key=lambda name: counts[name])
    most = max(counts, key=lambda name: counts[name])
    if counts[least] == counts[most]:
        return f"; {len(counts)} classes of {counts[least]} rows each"
    return f"; {len(counts)} classes, from {counts[least]} rows ({least}) to {counts[most]} ({most})"


def _next(out: Path, count: int) -> Sequence[str]:
    return [f"recipe: {out.resolve()}", f"next: tangora run {out} --dry-run"]


COMMAND = Command(new, example="tangora new --from mail.csv --text review --label verdict --base bert -o mail.yaml")
