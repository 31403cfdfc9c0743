"""``tangora distill``: train a plain LoRA adapter with features that follow those of tangent adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import FromHub, Options, OverwriteOption, RecipeArgument, SettingsOption, TrustOption
from tangora.cli.output import Output

__all__ = ["COMMAND", "DistillOptions", "distill"]


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Options):
    """The teachers, and the settings of the student's training."""

    recipe: RecipeArgument
    teachers: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER", help="A tangent adapter, or the expert of every task; or org/name."),
        FromHub("adapter"),
    ]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the student.")]
    mode: Annotated[
        str,
        typer.Option("--mode", help="The recipe's mode that trains the student.", autocompletion=completion.modes),
    ] = "lora"
    rows: Annotated[int, typer.Option("--rows", min=1, help="Largest number of train rows per task; no labels.")] = 1000
    settings: SettingsOption = None
    trust_remote_code: TrustOption = False
    overwrite: OverwriteOption = False


def distill(options: DistillOptions, output: Output) -> None:
    """Train a plain LoRA (or L-LoRA) adapter whose features follow those of a tangent adapter, or of several."""
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic
    from tangora.support.files import read_json, refuse_output

    recipe = load_recipe(options.recipe, options.settings or [], trust_remote_code=options.trust_remote_code)
    refuse_output(options.out, options.overwrite, options.teachers)
    config = recipe.finetune_config(options.mode)
    from tangora.adapters.adapter import load_beside  # deferred: imports torch
    from tangora.modes.distillation import distill as train_student
    from tangora.runs.runner import prepare
    from tangora.tasks.cuts import cut_lines, cuts

    where = recipe.base.model, recipe.base.revision
    teachers = [load_beside(folder, *where) for folder in options.teachers]
    with output.progress() as progress:
        base, tasks = prepare(recipe, progress)
        for line in cut_lines({task.name: cuts(task) for task in tasks}, ["train"]):
            progress.note(f"warning: {line}")
        train_student(
            base,
            tasks,
            teachers if len(teachers) > 1 else teachers[0],
            config,
            rows=options.rows,
            out=options.out,
            scratch=options.out.parent / f".{options.out.name}.training",
            overwrite=options.overwrite,
            progress=progress,
        )
    record = read_json(options.out / "training.json")
    document = {"adapter": options.out, "teachers": options.teachers, "mode": options.mode, "training": record}
    output.result(document, f"adapter: {options.out.resolve()}")


COMMAND = Command(distill, example="tangora distill recipe.yaml runs/my-run/fused/tangent/convex --out student")
