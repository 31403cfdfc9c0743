"""Coefficients of one comparison, by a search that looks at rows: solved on columns, or learned by forward passes.

Modes that are linearized as a whole have columns, on which a search costs little; other modes pass rows through the
model. What was found is kept, since a killed run shall not search again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tangora.coefficients.found import Found
from tangora.errors import FusionError
from tangora.modes.contract import mode_of
from tangora.support.files import digest, read_json, write_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.coefficients._logits import Logits
    from tangora.config.recipe import FusionEntry
    from tangora.fusion.fusion import Fusion
    from tangora.tangent.columns import Columns
    from tangora.tasks import Base, Task

__all__ = ["ColumnSource", "Searches", "refuse_unless_searchable"]

log = logging.getLogger("tangora")


class ColumnSource(Protocol):
    """Where a run's columns come from."""

    def get(self, mode: str, task: str, split: str, rows: Sequence[int] | None, per_site: bool) -> Columns:
        """Columns of every expert of a mode, on some rows of a task's split."""
        ...


@dataclass(frozen=True)
class Searches:
    """Finds coefficients for cells of a run, each once.

    Args:
        base: what forward passes go through.
        tasks: whose rows may be looked at.
        columns: of the modes that are linearized as a whole.
        cache: folder of what was found.
        seed: of the choice and the order of rows.
        batch_size: rows per forward pass.
    """

    base: Base
    tasks: Mapping[str, Task]
    columns: ColumnSource
    cache: Path
    seed: int = 0
    batch_size: int = 64

    def find(self, entry: FusionEntry, mode: str, subset: Sequence[str], fusion: Fusion, split: str) -> Found:
        """Coefficients for one set of adapters, from rows of ``split``, found now or before."""
        path = self.cache / f"{self._key(entry, subset, fusion, split)}.json"
        if path.is_file():
            return Found(**read_json(path))
        found = self._search(entry, mode, subset, fusion, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))
        return found

    def _key(self, entry: FusionEntry, subset: Sequence[str], fusion: Fusion, split: str) -> str:
        settings = entry.model_dump(mode="json", exclude={"name", "modes", "sizes", "spaces", "weights"})
        data = [self.tasks[name].fingerprint for name in subset]
        prints = [adapter.fingerprint for adapter in fusion.adapters]
        return digest(["search-2", settings, self.base.fingerprint, data, prints, split, self.seed])

    def _search(self, entry: FusionEntry, mode: str, subset: Sequence[str], fusion: Fusion, split: str) -> Found:
        rows = {name: self._rows(name, split, entry.labels) for name in subset}
        settings: dict[str, Any] = {"l2": entry.pull, "l1": entry.l1}
        settings |= {k: v for k in ("bound", "nonnegative") if (v := getattr(entry, k)) is not None}
        if all(mode_of(adapter).linear_in_coefficients for adapter in fusion.adapters):
            found = self._on_columns(entry, self._columns(entry, mode, subset, split, rows), settings)
        else:
            found = self._by_passes(entry, self._forward(entry, subset, fusion, split, rows), settings)
        told = {"split": split, "labels": entry.labels}
        log.info("%s %s %s: loss %.4g in %.2f s", mode, entry.label, "+".join(subset), found.loss, found.seconds)
        return Found(**{**vars(found), "settings": {**found.settings, **told}})

    def _rows(self, task: str, split: str, count: int | None) -> list[int]:
        from tangora.coefficients.rows import pick

        return pick(self.tasks[task].splits[split].targets, count, self.seed, task)

    def _columns(
        self, entry: FusionEntry, mode: str, subset: Sequence[str], split: str, rows: Mapping[str, list[int]]
    ) -> list[Columns]:
        chosen = {name: None if entry.labels is None else rows[name] for name in subset}
        got = [self.columns.get(mode, name, split, chosen[name], entry.per == "site") for name in subset]
        return [columns.subset(subset) for columns in got]

    def _on_columns(self, entry: FusionEntry, columns: list[Columns], settings: dict[str, Any]) -> Found:
        from tangora.coefficients.descend import adamerging
        from tangora.coefficients.linear import LinearLogits
        from tangora.coefficients.solve import convex, minimax

        if entry.search == "adamerging":
            return adamerging(LinearLogits(columns), **settings, **self._descent(entry))
        return minimax(columns, **settings) if entry.search == "minimax" else convex(columns, **settings)

    def _forward(
        self, entry: FusionEntry, subset: Sequence[str], fusion: Fusion, split: str, rows: Mapping[str, list[int]]
    ) -> Logits:
        from tangora.coefficients.forward import ForwardLogits

        return ForwardLogits(
            self.base,
            [self.tasks[name] for name in subset],
            split,
            dict(zip(subset, _parts(entry, fusion), strict=True)),
            per_site=entry.per == "site",
            rows=rows,
            batch_size=self.batch_size,
        )

    def _by_passes(self, entry: FusionEntry, logits: Logits, settings: dict[str, Any]) -> Found:
        from tangora.coefficients.descend import adamerging, learned

        if entry.search == "adamerging":
            return adamerging(logits, **settings, **self._descent(entry))
        return learned(logits, worst_task=entry.search == "minimax", **settings, **self._descent(entry))

    def _descent(self, entry: FusionEntry) -> dict[str, Any]:
        given = {k: v for k in ("steps", "learning_rate") if (v := getattr(entry, k)) is not None}
        return {**given, "rows": entry.rows_per_step, "seed": self.seed}


def _parts(entry: FusionEntry, fusion: Fusion) -> list[Adapter]:
    """What each coefficient multiplies: the adapters, or what the method makes of each beside the others."""
    if entry.method == "task_arithmetic":
        return list(fusion.adapters)
    count = len(fusion.adapters)
    return [
        fusion.merge(entry.method, [float(i == t) for i in range(count)], dict(entry.parameters)) for t in range(count)
    ]


def refuse_unless_searchable(entry: FusionEntry, linearized: Sequence[str]) -> None:
    """Refuse a method whose result is not a sum over the tasks, each times its weight.

    Args:
        entry: of a recipe.
        linearized: the modes of the entry that are linearized as a whole; their columns are of the adapters themselves.

    Raises:
        FusionError: a search by gradients cannot be had for this method.
    """
    from tangora.methods import get, methods

    if entry.search in (None, "lorahub"):
        return
    where = f"fusion.methods.{entry.label}"
    if linearized and entry.method != "task_arithmetic":
        fix = "use task_arithmetic, or give modes that are not linearized as a whole"
        what = f"in mode {linearized[0]} coefficients are of the adapters"
        raise FusionError(what, got=entry.method, where=where, fix=fix)
    if not get(entry.method).additive:
        known = ", ".join(name for name, method in methods().items() if method.additive)
        what = f"search {entry.search} needs a method that is linear in its weights"
        raise FusionError(what, got=entry.method, where=where, fix=f"such as {known}")
