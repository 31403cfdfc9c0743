"""Route the experts of a cell, once if that takes rows: a resumed run does not train again.

RUN/cache/routed/<key>/              the adapter of a router that learns
RUN/cache/answers/<key>.safetensors  answers of experts on a task's rows, shared by all cells
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tangora.adapters.adapter import Adapter, load
from tangora.adapters.metadata import FILE
from tangora.evaluation.evaluator import scoring_key
from tangora.fusion.routed import routed
from tangora.routing.contract import RoutingBench
from tangora.support.files import digest
from tangora.support.seams import FAMILIES, ROUTERS
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.config.routing import RouteSettings
    from tangora.fusion.fusion import Fusion
    from tangora.runs.stages.cells import Cell
    from tangora.tasks import Base, Task

__all__ = ["Routings", "router_code", "selection_of"]

OnStep = Callable[[int, int, float], None]


def router_code(name: str, family: str) -> str:
    """Return a digest of the code of a router, and of the family whose rows it may see."""
    router = ROUTERS.get(name)
    return source_digest(
        router, router.settings, routed, FAMILIES.get(family), without=("tangora.errors", "tangora.progress")
    )


def selection_of(settings: RouteSettings) -> str:
    """Return how tables call what a router was made from: ``oracle`` if it saw rows of the split that is scored."""
    learns = ROUTERS.get(settings.name).needs == "rows"
    return "oracle" if learns and settings.rows_of == "test" else "given"


@dataclass(frozen=True)
class Routings:
    """Routes experts of a run, and caches what was trained.

    Args:
        base: the base model.
        tasks: name -> task; a router that learns uses their rows.
        cache: of the run.
        seed: of a router that draws.
    """

    base: Base
    tasks: Mapping[str, Task]
    cache: Path
    seed: int

    def made(self, cell: Cell, fusion: Fusion, on_step: OnStep | None = None) -> Adapter:
        """Return the routed adapter of a cell, from the cache if it was trained before.

        Args:
            cell: its entry names the router.
            fusion: of the cell's experts, named by their tasks.
            on_step: called after each step with (step, total steps, loss).
        """
        settings = cell.entry.route
        assert settings is not None
        where = f"fusion.methods.{cell.entry.label}"
        if ROUTERS.get(settings.name).needs == "nothing":
            return routed(fusion, settings, where=where)
        folder = self._folder(settings, cell, fusion)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.cache / "training" / folder.name
        with FileLock(folder.with_suffix(".lock")):  # jobs of several processes may need the same adapter
            if not (folder / FILE).is_file():
                tasks = tuple(self.tasks[name] for name in cell.subset)
                bench = RoutingBench(self.base, tasks, self.seed, scratch, self.cache / "answers", on_step)
                routed(fusion, settings, bench, where=where).save(folder)
            shutil.rmtree(scratch, ignore_errors=True)  # here too if a kill came between the two
        return load(folder)

    def _folder(self, settings: RouteSettings, cell: Cell, fusion: Fusion) -> Path:
        rows = [self.tasks[name].fingerprint for name in cell.subset]
        prints = [scoring_key(adapter) for adapter in fusion.adapters]
        machine = [self.base.identity, self.base.machine.dtype]
        what = [settings.model_dump(mode="json"), list(cell.subset), rows, prints, self.seed, machine]
        return self.cache / "routed" / digest([router_code(settings.name, self.base.config.family), *what])
