"""A run's folder: whose it is, one run at a time, its log, its clock, and what it says of the machine."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.config.recipe import Recipe
from tangora.errors import OutputError
from tangora.support.files import read_json, write_json

if TYPE_CHECKING:
    from tangora.tasks import Base, Task

__all__ = ["Clock", "about", "claim", "locked", "logged"]

log = logging.getLogger("tangora")


def claim(out: Path, recipe: Recipe, overwrite: bool) -> None:
    """Make ``out`` this run's folder, or refuse.

    Raises:
        OutputError: it holds something that is not a run, or a run of another recipe, and ``overwrite`` is false.
    """
    if out.exists() and not out.is_dir():
        raise OutputError("the output is not a folder", where=out, fix="choose another --out")
    if not out.exists() or not any(p.name not in {".lock", "run.log"} for p in out.iterdir()) or overwrite:
        return
    if not (out / "recipe.yaml").is_file():
        if {p.name for p in out.iterdir()} <= {".lock", "run.log", "cache"}:
            return  # killed before its recipe was written
        raise OutputError("the output exists and is not a run", where=out, fix="choose another --out, or --overwrite")
    if (out / "recipe.yaml").read_text(encoding="utf-8") != recipe.to_yaml():
        raise OutputError(
            "the output holds a run of another recipe",
            where=out / "recipe.yaml",
            fix="choose another --out, or pass --overwrite (adapters that stay valid are reused)",
        )


class Clock:
    """Seconds per stage, summed over the sittings of a resumed run, in ``RUN/run.json``."""

    def __init__(self, out: Path) -> None:
        self._path = out / "run.json"
        self._kept = out / "cache" / "seconds.json"
        self.seconds: dict[str, float] = read_json(self._kept, OutputError) if self._kept.is_file() else {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time one stage, also when it is interrupted."""
        started = time.perf_counter()
        log.info("stage: %s", stage)
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - started, 3)
            with contextlib.suppress(OutputError, OSError):
                write_json(self._kept, self.seconds)

    def save(self, about: Mapping[str, Any]) -> None:
        """Write ``run.json``."""
        write_json(self._path, {**about, "seconds": self.seconds})


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Refuse a second run in the same folder; the lock goes with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as cause:
        raise OutputError(f"cannot be written ({cause.strerror})", where=out, fix="choose another --out") from cause
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no flock on this platform: go on without the guard
            pass
        except OSError as cause:
            raise OutputError("another run is using this folder", where=out, fix="wait for it to end") from cause
        yield


class _Log(logging.FileHandler):
    """A log that a full disk cuts short: what is told is the run's own error."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Close the file, whether or not its last lines could be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logged(out: Path) -> Iterator[None]:
    """Write the package's log to ``RUN/run.log``, with the traceback of whatever ends the block early."""
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


def about(recipe: Recipe, base: Base, tasks: Sequence[Task]) -> dict[str, Any]:
    """What decided the run besides its recipe: versions, machine, sizes of the data."""
    packages = ("tangora", "torch", "transformers", "peft", "accelerate", "numpy", "scipy", "scikit-learn")
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "base": {"model": recipe.base.model, "revision": recipe.base.revision, "fingerprint": base.fingerprint},
        "tasks": {t.name: {s: len(rows.targets) for s, rows in t.splits.items()} for t in tasks},
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
        "machine": {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
