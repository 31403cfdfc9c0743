"""A run's directory: ownership, locking, logging, timing and machine information."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tangora.config.recipe import Recipe, load_run_recipe
from tangora.errors import OutputError, TangoraError
from tangora.runs.changes import changes, moved
from tangora.runs.sources import Sources
from tangora.support.files import read_json, write_json
from tangora.support.publishing import is_scratch

__all__ = ["Clock", "claim", "locked", "logged", "provenance"]

log = logging.getLogger("tangora")

_ENTRIES_BEFORE_RECIPE = {".lock", "run.log", "cache", "adapters"}
# What may differ when a run resumes.
_CHANGEABLE: Mapping[str, Any] = {"base": {"device_map"}, "executor": True, "machine": {"device", "threads"}}
_PACKAGES = ("tangora", "torch", "transformers", "peft", "accelerate", "numpy", "scipy", "scikit-learn")


def claim(out: Path, recipe: Recipe, overwrite: bool) -> None:
    """Make ``out`` this run's folder, or refuse.

    Raises:
        OutputError: it contains something else than a run, or a run of another recipe, and ``overwrite`` is false.
    """
    if out.exists() and not out.is_dir():
        raise OutputError("the output is not a folder", where=out, fix="choose another --out")
    if not out.exists() or not any(p.name not in {".lock", "run.log"} for p in out.iterdir()) or overwrite:
        return
    if not (out / "recipe.yaml").is_file():
        if {p.name for p in out.iterdir() if not is_scratch(p.name)} <= _ENTRIES_BEFORE_RECIPE:
            return  # killed before its recipe was written, or with adapters that were trained one by one
        raise OutputError("the output exists and is not a run", where=out, fix="choose another --out, or --overwrite")
    if (what := _another(out, recipe)) is not None:
        raise OutputError(
            f"the output holds a run of another recipe{what}",
            where=out / "recipe.yaml",
            fix="choose another --out, or pass --overwrite (adapters that are still valid are reused)",
        )


_MOST = 8  # changed keys in a message


def _another(run: Path, recipe: Recipe) -> str | None:
    """Return what differs from the recipe of a run, in words; None if nothing does.

    Defaults that an older version did not write are filled in. More seeds after the first one are no difference: what
    exists is what they add to.
    """
    try:
        written = load_run_recipe(run)
    except TangoraError:  # written by another version, or with a plug-in that is not installed any more
        return ""
    adds = recipe.first_seed == written.first_seed and set(recipe.every_seed) >= set(written.every_seed)
    several = bool(written.seeds or recipe.seeds)
    one = _compared(written, recipe.every_seed if adds else written.every_seed, several)
    other = _compared(recipe, recipe.every_seed, several)
    changed = changes(one, other, moved=moved(written, recipe))
    if not changed:
        return None
    more = f"; and {len(changed) - _MOST} more" if len(changed) > _MOST else ""
    return f" ({'; '.join(changed[:_MOST])}{more})"


def _compared(recipe: Recipe, seeds: Sequence[int], several: bool) -> dict[str, Any]:
    """Return what makes a run of a recipe the same run."""
    raw = recipe.as_stated().model_dump(exclude={**_CHANGEABLE, "seed": True, "seeds": True})
    return {**raw, "seeds": list(seeds)} if several else {**raw, "seed": recipe.seed}


class Clock:
    """Seconds per stage, summed over all starts of a resumed run, in ``RUN/run.json``.

    If several processes work on a stage, their seconds are added up.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / "run.json"
        self._kept = out / "cache" / "seconds.json"
        self.seconds: dict[str, float] = read_json(self._kept, OutputError) if self._kept.is_file() else {}

    def add(self, stage: str, seconds: float) -> None:
        """Add to the time of a stage, even if it was interrupted."""
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 3)
        with contextlib.suppress(OutputError, OSError):  # if the disk is full, the run's own error reports it
            write_json(self._kept, self.seconds)

    def save(self, facts: Mapping[str, Any]) -> None:
        """Write ``run.json``."""
        write_json(self._path, {**facts, "seconds": self.seconds})


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Refuse a second run in the same folder; the system releases the lock when the process ends.

    Other processes may do single jobs in the folder: each job has its own lock.

    Raises:
        OutputError: another run uses the folder, or it cannot be written.
    """
    lock = FileLock(out / ".lock", blocking=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as cause:
        raise OutputError("another run is using this folder", where=out, fix="wait for it to end") from cause
    except OSError as cause:
        raise OutputError(f"cannot be written ({cause.strerror})", where=out, fix="choose another --out") from cause
    try:
        yield
    finally:
        lock.release()


class _Log(logging.FileHandler):
    """A log that ignores its own errors: if the disk is full, the run's own error is reported."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error."""

    def close(self) -> None:
        """Close the file, even if its last lines cannot be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logged(out: Path) -> Iterator[None]:
    """Append the package's log to ``RUN/run.log``, with the traceback of an error that ends the block."""
    handler = _Log(out / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        log.exception("stopped: %s", error or type(error).__name__)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def provenance(recipe: Recipe, sources: Sources) -> dict[str, Any]:
    """Return what determined a run besides its recipe, for ``run.json``: versions, machine, sizes of the data."""
    return {
        "recipe": recipe.name,
        "seed": recipe.first_seed,
        **({"seeds": list(recipe.seeds)} if recipe.seeds else {}),
        "base": {"model": recipe.base.model, "revision": recipe.base.revision, "fingerprint": sources.base},
        "tasks": {name: dict(facts.rows) for name, facts in sources.tasks.items()},
        "cut": {name: dict(facts.cut) for name, facts in sources.tasks.items() if facts.cut},
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
    }


def _versions() -> dict[str, str]:
    """Return the versions of installed packages that affect results."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _processor() -> str:
    """Return the name of the processor: from /proc/cpuinfo on Linux, else from Python."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
