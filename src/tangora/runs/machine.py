"""The machine of a run, as configured in its recipe, with the number of threads that the run began with."""

from __future__ import annotations

from pathlib import Path

from tangora.config.recipe import Recipe
from tangora.errors import FileError
from tangora.support.files import read_json, write_json
from tangora.support.machine import Machine

__all__ = ["machine_of"]


def machine_of(recipe: Recipe, run: Path | None = None) -> Machine:
    """Return the machine that a recipe configures.

    The number of threads affects the last bits of a sum. So a measured number is recorded in the run's folder, and a
    resumed run computes with the number that it began with.

    Args:
        recipe: its ``machine`` section.
        run: the run's folder, if there is one.

    Raises:
        ArgumentError: the device cannot be used here.
    """
    settings = recipe.machine
    kept = run / "cache" / "threads.json" if run is not None else None
    threads: int | str = settings.threads
    if threads == "auto" and kept is not None and kept.is_file():
        threads = int(read_json(kept, FileError).get("threads", 0)) or "auto"
    machine = Machine.resolve(settings.device, settings.dtype, threads)
    if kept is not None and run is not None and run.is_dir() and not kept.is_file():
        write_json(kept, {"threads": machine.threads})
    return machine
