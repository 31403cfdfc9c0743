"""`run`: run a recipe, from its data to its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tangora.api.shown import Shown, shown
from tangora.config.recipe import Recipe
from tangora.runs.runner import run as run_recipe

__all__ = ["run"]


def run(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    only: Sequence[str] = (),
    progress: Shown = None,
) -> Path:
    """Fine-tune, fuse, evaluate and report, as ``tangora run`` does; return the run's folder.

    A run that was stopped resumes. ``executor`` in the recipe determines where its jobs are done. With ``processes``,
    call this from a script below ``if __name__ == "__main__":``.

    Args:
        recipe: from `tangora.load_recipe`.
        out: the run's folder. If it contains a run of the same recipe, that run resumes.
        overwrite: let a different recipe take over the folder; results that both share are reused.
        only: do only the jobs with one of these texts in their label, such as ``lora``, and what they read; the tables
            and the report are made without it.
        progress: whether to show bars; by default in a terminal or a notebook.

    Raises:
        ArgumentError: no job has a label with a text of ``only``.
        OutputError: ``out`` contains something else, is in use by another run, or cannot be written.
        TangoraError: the recipe, the data, the base or an adapter is invalid.

    >>> import tangora
    >>> tangora.run(tangora.load_recipe("recipe.yaml"), "run", progress=False).name
    'run'
    """
    with shown(progress) as bars:
        return run_recipe(recipe, out, overwrite=overwrite, only=only, progress=bars)
