"""Coefficients of one comparison by a search, each found once: a killed run does not search again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tangora.coefficients.found import Found
from tangora.coefficients.pose import Bench, code_of, pose
from tangora.coefficients.problem import silent
from tangora.methods import get
from tangora.support.files import digest, read_json, write_json
from tangora.support.seams import SEARCHES

if TYPE_CHECKING:
    from tangora.config.recipe import FusionEntry
    from tangora.evaluation.candidates import Scoring
    from tangora.fusion.fusion import Fusion
    from tangora.tangent.columns import Columns
    from tangora.tasks import Base, Task

__all__ = ["ColumnSource", "Searches"]

log = logging.getLogger("tangora")


class ColumnSource(Protocol):
    """Keeps a run's columns."""

    def get(self, mode: str, task: str, split: str, rows: Sequence[int] | None, per_site: bool) -> Columns:
        """Return the columns of every expert of a mode, on some rows of a task's split."""
        ...


@dataclass(frozen=True)
class Searches:
    """Finds coefficients for cells of a run, each once.

    Args:
        base: what forward passes go through.
        tasks: whose rows may be looked at.
        columns: of the modes whose logits are linear in the coefficients.
        cache: folder of what was found.
        seed: of the choice of rows and of whatever a search draws.
        batch_size: rows per forward pass.
    """

    base: Base
    tasks: Mapping[str, Task]
    columns: ColumnSource
    cache: Path
    seed: int = 0
    batch_size: int = 64

    def find(
        self,
        entry: FusionEntry,
        mode: str,
        subset: Sequence[str],
        fusion: Fusion,
        split: str,
        scoring: Scoring,
        on_step: Callable[[int, int, str], None] = silent,
    ) -> Found:
        """Return coefficients for one set of adapters, from rows of ``split``, found now or before."""
        path = self.cache / f"{self._key(entry, subset, fusion, split)}.json"
        if path.is_file():
            return Found(**read_json(path))
        found = self._search(entry, mode, subset, fusion, split, scoring, on_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))
        return found

    def _key(self, entry: FusionEntry, subset: Sequence[str], fusion: Fusion, split: str) -> str:
        assert entry.search is not None
        method, prints = get(entry.method), [adapter.fingerprint for adapter in fusion.adapters]
        return digest(
            {
                "search": entry.search.model_dump(mode="json"),
                "fusion": [entry.method, entry.parameters, fusion.space],
                "data": [self.base.fingerprint, split, *(self.tasks[name].fingerprint for name in subset)],
                "adapters": prints,
                "statistics": sorted(s.fingerprint for s in fusion.statistics if s.about.adapter in prints),
                "seed": self.seed,
                "code": code_of(SEARCHES.get(entry.search.name), method),
            }
        )

    def _search(
        self,
        entry: FusionEntry,
        mode: str,
        subset: Sequence[str],
        fusion: Fusion,
        split: str,
        scoring: Scoring,
        on_step: Callable[[int, int, str], None],
    ) -> Found:
        settings = entry.search
        assert settings is not None
        bench = Bench(self.base, self.tasks, scoring, partial(self.columns.get, mode), self.batch_size)
        posed = pose(
            bench,
            fusion,
            subset,
            settings,
            method=entry.method,
            parameters=entry.parameters,
            split=split,
            seed=self.seed,
            on_step=on_step,
        )
        found: Found = SEARCHES.get(settings.name)(posed.problem, settings)
        log.info("%s %s %s: loss %.4g in %.2f s", mode, entry.label, "+".join(subset), found.loss, found.seconds)
        chosen_from = {**found.settings, "split": split, "labels": settings.row_limit}
        return replace(found, settings=chosen_from, tried=tuple(posed.tried))
