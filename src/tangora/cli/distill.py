"""``tangora distill``: its options, and what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tangora.cli.options import Overwrite, RecipeArgument, Settings
from tangora.cli.terminal import bars

__all__ = ["distill"]


def distill(
    recipe: RecipeArgument,
    teachers: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="A tangent adapter, or the expert of every task."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the student goes.")],
    mode: Annotated[str, typer.Option("--mode", help="How the student is made: a mode of the recipe.")] = "lora",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Most train rows of a task; no labels are used.")] = 1000,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a plain LoRA (or L-LoRA) adapter whose features follow those of a tangent adapter, or of several."""
    from tangora.config.recipe import load_recipe
    from tangora.support.files import refuse_existing

    loaded = load_recipe(recipe, settings or [])
    refuse_existing(out, overwrite)
    config = loaded.finetune_config(mode)
    from tangora.adapters.adapter import load
    from tangora.modes.distillation import distill as train_student
    from tangora.runs.runner import prepare

    adapters = [load(folder) for folder in teachers]
    with bars() as progress:
        base, tasks = prepare(loaded, progress)
        progress.begin(f"{mode} · distilled", config.training.steps)
        train_student(
            base,
            tasks,
            adapters if len(adapters) > 1 else adapters[0],
            config,
            rows=rows,
            out=out,
            scratch=out.parent / f".{out.name}.training",
            overwrite=overwrite,
            on_step=lambda step, total, loss: progress.update(step, f"loss {loss:.4f}"),
        )
        progress.end()
    print(f"adapter: {out.resolve()}")
