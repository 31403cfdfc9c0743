"""Find the coefficients of a cell by a search, once: a resumed run does not search again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tangora.adapters.heads import heads_digest
from tangora.coefficients.found import Found
from tangora.coefficients.pose import SearchContext, code_of, pose
from tangora.coefficients.problem import silent
from tangora.methods import get
from tangora.modes.contract import mode_of
from tangora.support.files import digest, read_json, write_json
from tangora.support.seams import FAMILIES, SEARCHES

if TYPE_CHECKING:
    from tangora.config.fusion import SearchSettings
    from tangora.evaluation.candidates import Scoring
    from tangora.fusion.fusion import Fusion
    from tangora.runs.stages.cells import Cell
    from tangora.tangent.columns import Columns
    from tangora.tasks import Base, Task

__all__ = ["RunColumns", "Searches"]

log = logging.getLogger("tangora")


class RunColumns(Protocol):
    """Provides a run's columns."""

    def get(self, mode: str, task: str, split: str, rows: Sequence[int] | None, per_site: bool) -> Columns:
        """Return the columns of every expert of a mode, on some rows of a task's split."""
        ...


@dataclass(frozen=True)
class Searches:
    """Finds coefficients for cells of a run, and caches them.

    Args:
        base: the base model.
        tasks: searches use their rows.
        columns: of the modes with logits that are linear in the coefficients.
        cache: folder of the results.
        seed: of the choice of rows and of a search's random draws.
        batch_size: rows per forward pass.
    """

    base: Base
    tasks: Mapping[str, Task]
    columns: RunColumns
    cache: Path
    seed: int = 0
    batch_size: int = 64

    def find(
        self,
        cell: Cell,
        settings: SearchSettings,
        fusion: Fusion,
        split: str,
        scoring: Scoring,
        on_step: Callable[[int, int, str], None] = silent,
    ) -> Found:
        """Return coefficients for the adapters of a cell, from the cache if possible.

        Args:
            cell: determines mode, tasks, method and parameters.
            settings: of the search.
            fusion: of the cell's adapters.
            split: the search uses rows of this split.
            scoring: scores fused candidates.
            on_step: see `tangora.coefficients.problem.Problem`.
        """
        path = self.cache / f"{self._key(cell, settings, fusion, split)}.json"
        if path.is_file():
            return Found(**read_json(path))
        found = self._search(cell, settings, fusion, split, scoring, on_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))
        return found

    def _key(self, cell: Cell, settings: SearchSettings, fusion: Fusion, split: str) -> str:
        entry, adapters = cell.entry, fusion.adapters
        prints, modes = [adapter.fingerprint for adapter in adapters], [mode_of(adapter) for adapter in adapters]
        code = code_of(SEARCHES.get(settings.name), get(entry.method), FAMILIES.get(self.base.config.family), *modes)
        return digest(
            {
                "search": settings.model_dump(mode="json"),
                "fusion": [entry.method, entry.parameters, fusion.space],
                "data": [self.base.identity, split, *(self.tasks[name].fingerprint for name in cell.subset)],
                "adapters": prints,
                "heads": [heads_digest(adapter.heads) for adapter in adapters],
                "statistics": sorted(s.fingerprint for s in fusion.statistics if s.about.adapter in prints),
                "seed": self.seed,
                "code": code,
            }
        )

    def _search(
        self,
        cell: Cell,
        settings: SearchSettings,
        fusion: Fusion,
        split: str,
        scoring: Scoring,
        on_step: Callable[[int, int, str], None],
    ) -> Found:
        entry, columns = cell.entry, partial(self.columns.get, cell.mode)
        posed = pose(
            SearchContext(self.base, self.tasks, scoring, columns, self.batch_size),
            fusion,
            cell.subset,
            settings,
            method=entry.method,
            parameters=entry.parameters,
            split=split,
            seed=self.seed,
            on_step=on_step,
        )
        found = posed.solve()
        subset = "+".join(cell.subset)
        log.info("%s %s %s: loss %.4g in %.2f s", cell.mode, entry.label, subset, found.loss, found.seconds)
        return found
