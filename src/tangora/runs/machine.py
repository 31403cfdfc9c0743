"""The machine of a run: what its recipe asks for, and the number of threads that it began with."""

from __future__ import annotations

from pathlib import Path

from tangora.config.recipe import Recipe
from tangora.errors import FileError
from tangora.support.files import read_json, write_json
from tangora.support.machine import Machine

__all__ = ["machine_of"]


def machine_of(recipe: Recipe, run: Path | None = None) -> Machine:
    """Return the machine that a recipe asks for.

    The number of threads decides the last bits of a sum. So a number that was measured is kept in the run's folder, and
    a run that goes on computes with the threads it began with.

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
