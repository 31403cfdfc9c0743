"""Choose coefficients on some rows: one λ by a grid, and by a search if one is named or there are enough rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.coefficients.found import Found
from tangora.coefficients.one_weight import Ranking, one_weight
from tangora.coefficients.pose import SearchContext, code_of, pose
from tangora.coefficients.requirements import is_plain_sum
from tangora.evaluation.candidates import Scoring
from tangora.evaluation.evaluator import Evaluator, ScoreStore
from tangora.methods import get
from tangora.modes.contract import mode_of
from tangora.modes.given import content_digest
from tangora.support.files import digest, read_json, write_json
from tangora.support.seams import FAMILIES, METRICS, SEARCHES

if TYPE_CHECKING:
    from tangora.coefficients.contract import SearchSettings
    from tangora.coefficients.pairing import Member
    from tangora.config.fusion import FusionEntry
    from tangora.fusion.fusion import Fusion
    from tangora.progress import Progress
    from tangora.tasks import Base, Task

__all__ = ["GRID_SEARCH", "LEAST_ROWS", "Chooser", "Chosen"]

GRID_SEARCH = "grid"
"""The name of the choice of one λ for all adapters, which is no registered search."""

LEAST_ROWS = 32
"""Choosing rows of each task from which on, by default, coefficients for each adapter are looked for."""


@dataclass(frozen=True)
class Chosen:
    """Coefficients, the name of the search that found them, and why it was used."""

    name: str
    found: Found
    reason: str


@dataclass(frozen=True)
class Chooser:
    """Chooses coefficients for a fusion on the rows of a split.

    Args:
        base: of the adapters.
        tasks: with the rows that coefficients are chosen on, and no others of the split.
        members: the adapters, and the tasks whose own they are.
        fusion: of the adapters.
        entry: method, parameters and search; without a search for a grid, or for the default.
        split: of the rows.
        seed: see `search`.
        batch_size: rows per forward pass.
        store: keeps scores.
        scratch: keeps the search's result; None to keep nothing.
        listener: receives progress.
    """

    base: Base
    tasks: Sequence[Task]
    members: Sequence[Member]
    fusion: Fusion
    entry: FusionEntry
    split: str
    seed: int
    batch_size: int
    store: ScoreStore
    scratch: Path | None
    listener: Progress

    def choose(self, weights: Sequence[float], *, named: bool) -> tuple[Found, Chosen]:
        """Return the best λ for all adapters, and the coefficients that are used.

        Args:
            weights: the grid of λ.
            named: whether a search was asked for by name, the grid included.
        """
        ranking = self._ranking()
        one = one_weight(ranking, weights, self._steps("compare one λ for all"))
        one = _of_split(one, self.split)
        if self.entry.search is not None:
            return one, Chosen(self.entry.search.name, self._searched(self.entry.search), "it was asked for")
        if named:
            return one, Chosen(GRID_SEARCH, one, "it was asked for")
        if reason := self._against_more():
            return one, Chosen(GRID_SEARCH, one, f"one λ for all: {reason}")
        name = "convex" if self._linear else "learned"
        found = self._searched(SEARCHES.get(name).settings.model_validate({"name": name}))
        own, other = ranking.rank(found.weights), ranking.rank(one.weights)
        if own > other:
            how = f"it keeps {100 * own[0]:.1f} % of the adapters on the choosing rows, one λ {100 * other[0]:.1f} %"
            return one, Chosen(name, found, how)
        how = f"coefficients by search {name} keep no more on the choosing rows"
        return one, Chosen(GRID_SEARCH, one, f"one λ for all: {how}")

    def _against_more(self) -> str:
        """Return why coefficients for each adapter are not looked for; empty if they are."""
        few = min(len(task.splits[self.split]) for task in self.tasks)
        if len(self.members) < 2:
            return "there is one adapter"
        if few < LEAST_ROWS:
            return f"a task has {few} choosing row{'s' if few != 1 else ''}, fewer than {LEAST_ROWS}"
        if not get(self.entry.method).additive:
            return f"{self.entry.method} is not linear in its weights"
        if any(task.form.logits_over is None for task in self.tasks):
            return "the answers of a task have no distribution"
        return "an adapter saved layers whole" if any(a.whole for a in self.fusion.adapters) else ""

    @cached_property
    def _scoring(self) -> Scoring:
        evaluator = Evaluator(self.base, self.tasks, batch_size=self.batch_size, store=self.store)
        return Scoring(evaluator, self.seed)

    @cached_property
    def _linear(self) -> bool:
        linear = all(mode_of(adapter).linear_in_coefficients for adapter in self.fusion.adapters)
        return linear and is_plain_sum(get(self.entry.method))

    def _ranking(self) -> Ranking:
        """Score each task's own adapter on the choosing rows; of a task without one, the adapter that does it best."""
        own = {member.name: i for i, member in enumerate(self.members) if member.task is not None}
        asked = {
            task.name: [own[task.name]] if task.name in own else list(range(len(self.members))) for task in self.tasks
        }
        self.listener.begin(f"score the adapters on {self.split} rows", sum(map(len, asked.values())))
        experts: dict[str, float] = {}
        for task in self.tasks:
            found = []
            for i in asked[task.name]:
                adapter = self.fusion.adapters[i]
                found.append(self._scoring.of_adapter(adapter, [task.name], self.split)[task.name].score)
                self.listener.advance(detail=f"{self.fusion.names[i]} on {task.name}")
            experts[task.name] = max(found) if METRICS.get(task.metric).higher_is_better else min(found)
        self.listener.end()
        tasks = {task.name: task for task in self.tasks}
        entry = self.entry
        return Ranking(self._scoring, self.fusion, tasks, self.split, experts, entry.method, entry.parameters)

    def _searched(self, settings: SearchSettings) -> Found:
        """Search, or read what an earlier call has found."""
        path = None if self.scratch is None else self.scratch / f"{self._key(settings)}.json"
        if path is not None and path.is_file():
            return Found(**read_json(path))
        posed = pose(
            SearchContext(
                self.base, {task.name: task for task in self.tasks}, self._scoring, batch_size=self.batch_size
            ),
            self.fusion,
            self.fusion.names,
            settings,
            method=self.entry.method,
            parameters=self.entry.parameters,
            split=self.split,
            seed=self.seed,
            scored=[task.name for task in self.tasks],
            on_step=self._steps(f"search {settings.name}"),
        )
        found = posed.solve()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(found))
        return found

    def _key(self, settings: SearchSettings) -> str:
        entry, adapters = self.entry, self.fusion.adapters
        family = FAMILIES.get(self.base.config.family)
        code = code_of(SEARCHES.get(settings.name), get(entry.method), family, *map(mode_of, adapters))
        return digest(
            {
                "search": settings.model_dump(mode="json"),
                "fusion": [entry.method, entry.parameters],
                "data": [self.base.identity, self.split, *(task.fingerprint for task in self.tasks)],
                "adapters": [[name, content_digest(a)] for name, a in zip(self.fusion.names, adapters, strict=True)],
                "seed": self.seed,
                "code": code,
            }
        )

    def _steps(self, label: str) -> Callable[[int, int, str], None]:
        """Return a function that shows the steps of a search as one stage; its length is known from the first on."""
        begun = False

        def step(done: int, total: int, detail: str) -> None:
            nonlocal begun
            if not begun:
                self.listener.begin(label, total)
                begun = True
            self.listener.update(done, detail)
            if done == total:
                self.listener.end()

        return step


def _of_split(found: Found, split: str) -> Found:
    return Found(**{**vars(found), "settings": {**found.settings, "split": split}})
