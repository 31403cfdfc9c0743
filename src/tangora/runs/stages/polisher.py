"""Polish the chosen fusion of a cell, once: a resumed run does not train again.

RUN/cache/polished/<key>/            the adapter, with its training.json
RUN/cache/answers/<key>.safetensors  the answers of an expert on a task's rows, shared by all cells
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tangora.adapters.adapter import Adapter, load
from tangora.adapters.metadata import FILE
from tangora.evaluation.candidates import candidate_key
from tangora.evaluation.evaluator import scoring_key
from tangora.support.files import atomic_dir, digest, read_json, write_json
from tangora.support.seams import FAMILIES
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.fusion.fusion import Fusion
    from tangora.runs.stages.fusion import Candidate
    from tangora.tasks import Base, Task

__all__ = ["Polisher", "polish_code"]

OnStep = Callable[[int, int, float], None]


def polish_code(family: str) -> str:
    """Return a digest of the code that polishes."""
    from tangora.polishing import training  # deferred: imports torch

    return source_digest(training, FAMILIES.get(family), without=("tangora.errors", "tangora.progress"))


@dataclass(frozen=True)
class Polisher:
    """Polishes fusions of a run, and caches the results.

    Args:
        base: the base model.
        tasks: name -> task; rows of their inputs are used.
        cache: of the run.
        seed: of the rows and of their order.
    """

    base: Base
    tasks: Mapping[str, Task]
    cache: Path
    seed: int

    def polished(self, candidate: Candidate, fusion: Fusion, on_step: OnStep | None = None) -> Adapter:
        """Return the polished adapter of a candidate, from the cache if possible.

        Args:
            candidate: the chosen one of a cell.
            fusion: of the cell's experts, named by their tasks.
            on_step: called after each step with (step, total steps, loss).
        """
        folder = self._folder(candidate, fusion)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.cache / "training" / folder.name
        with FileLock(folder.with_suffix(".lock")):  # jobs of several processes may need the same polish
            if not (folder / FILE).is_file():
                self._train(candidate, fusion, folder, scratch, on_step)
            shutil.rmtree(scratch, ignore_errors=True)  # here too if a kill came between the two
        return load(folder)

    def record(self, candidate: Candidate, fusion: Fusion) -> Mapping[str, Any]:
        """Return the curves of a polish that was done: ``training.json``."""
        return read_json(self._folder(candidate, fusion) / "training.json")

    def _folder(self, candidate: Candidate, fusion: Fusion) -> Path:
        cell, entry = candidate.cell, candidate.cell.entry
        assert entry.polish is not None
        start: list[Any] = [candidate_key(fusion, entry.method, candidate.weights, candidate.parameters, fusion.seed)]
        # Equal starts of two methods are polished twice: each result says how its own start was made.
        start += [entry.method, candidate.weights, candidate.parameters, fusion.space, self.base.machine.dtype]
        rows = [self.tasks[name].fingerprint for name in cell.subset]
        prints = [scoring_key(adapter) for adapter in fusion.adapters]
        what = [*start, entry.polish.model_dump(mode="json"), self.seed, self.base.identity, rows, prints]
        return self.cache / "polished" / digest([polish_code(self.base.config.family), *what])

    def _train(self, candidate: Candidate, fusion: Fusion, folder: Path, scratch: Path, on_step: OnStep | None) -> None:
        from tangora.polishing.training import polished  # deferred: imports torch

        cell, entry = candidate.cell, candidate.cell.entry
        assert entry.polish is not None
        made = polished(
            fusion.merge(entry.method, candidate.weights, candidate.parameters),
            {name: partial(_same, adapter) for name, adapter in zip(fusion.names, fusion.adapters, strict=True)},
            self.base,
            [self.tasks[name] for name in cell.subset],
            entry.polish,
            seed=self.seed,
            scratch=scratch,
            cache=self.cache / "answers",
            on_step=on_step,
        )
        with atomic_dir(folder) as staging:
            made.adapter.save(staging)
            write_json(staging / "training.json", made.record)


def _same(adapter: Adapter) -> Adapter:
    return adapter
