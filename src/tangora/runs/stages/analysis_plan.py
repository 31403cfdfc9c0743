"""Plan the analyses of a run: the measurements to do, their cost, and those that exist already."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tangora.adapters.adapter import load
from tangora.analysis.plane import grid
from tangora.config.recipe import Recipe, load_run_recipe, no_run
from tangora.errors import ArgumentError
from tangora.modes.contract import mode_of
from tangora.support.files import digest, read_json
from tangora.support.seams import FAMILIES
from tangora.support.validation import did_you_mean

__all__ = ["KINDS", "AnalysisPlan", "AnalysisSettings", "Measurement"]

CODE = "analysis-1"  # increase it if the same settings would give other numbers
KINDS = ("signs", "angles", "planes", "linearity")
MOST_PAIRS = 3  # default number of pairs of tasks: a plane takes minutes
PATH = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # points of φ₀ + a·τ
RANK = 8  # number of leading directions of a site to compare


@dataclass(frozen=True)
class AnalysisSettings:
    """The measurements to do, and their resolution.

    Args:
        only: some of `KINDS`.
        modes: some of the recipe's; empty for all.
        pairs: ``a+b,c+d``, or ``all``; None for the first `MOST_PAIRS`, disjoint ones before others.
        points: number of points of a plane's grid on [0, 1], in each direction.
        margin: extension of the grid beyond 0 and 1.
        rows: the largest number of rows per task.
        split: of the rows.

    Raises:
        ArgumentError: a value is invalid.
    """

    only: Sequence[str] = KINDS
    modes: Sequence[str] = ()
    pairs: str | None = None
    points: int = 6
    margin: float = 0.4
    rows: int = 128
    split: str = "validation"

    def __post_init__(self) -> None:
        """Check the values that do not depend on a run."""
        grid(self.points, self.margin)
        _check_names(self.only, KINDS, "--only")
        _check_names([self.split], ["train", "validation", "test"], "--split")
        if self.rows < 1:
            raise ArgumentError("rows must be at least 1", got=self.rows, where="--rows")

    def of(self, kind: str) -> dict[str, Any]:
        """Return the settings that determine the numbers of a kind."""
        data = {"rows": self.rows, "split": self.split}
        of_kind: dict[str, dict[str, Any]] = {
            "signs": {},
            "angles": {"rank": RANK},
            "planes": {"points": self.points, "margin": self.margin, **data},
            "linearity": {"path": PATH, **data},
        }
        return of_kind[kind]


@dataclass(frozen=True)
class Measurement:
    """One entry of a file of results, computed or not.

    Attributes:
        passes: the largest number of forward passes that it takes.
    """

    kind: str
    mode: str
    tasks: tuple[str, ...]
    key: str
    passes: int


@dataclass(frozen=True)
class AnalysisPlan:
    """The measurements to do in a run's folder, and those that exist already.

    ``trust_remote_code``: as in `load_recipe`.

    Raises:
        FileError: the folder is not a finished run.
        ArgumentError: the run has no such mode or task.
    """

    run: Path
    settings: AnalysisSettings = field(default_factory=AnalysisSettings)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse a folder that is not a finished run, and names that the run does not have."""
        missing = [name for name in ("recipe.yaml", "scores.csv") if not (self.run / name).is_file()]
        if missing:
            raise no_run(self.run, missing[0], "finished run")
        _check_names(self.settings.modes, list(self.recipe.modes), "--modes")
        _ = self.pairs

    @cached_property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return load_run_recipe(self.run, trust_remote_code=self.trust_remote_code)

    @cached_property
    def tasks(self) -> list[str]:
        """Names, in the recipe's order."""
        return [task.name for task in self.recipe.tasks]

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of tasks with planes to compute."""
        possible = _disjoint_first(self.tasks)
        if self.settings.pairs is None:
            return possible[:MOST_PAIRS]
        if self.settings.pairs == "all":
            return possible
        named = [part.split("+") for part in self.settings.pairs.split(",")]
        for pair in named:
            if len(pair) != 2 or pair[0] == pair[1]:
                fix = "two tasks joined by +, pairs separated by commas: a+b,c+d"
                raise ArgumentError("a pair is two tasks", got="+".join(pair), where="--pairs", fix=fix)
            _check_names(pair, self.tasks, "--pairs")
        return [(a, b) for a, b in (sorted(pair, key=self.tasks.index) for pair in named)]

    @cached_property
    def measurements(self) -> list[Measurement]:
        """All measurements under these settings, with modes outermost."""
        modes = self.settings.modes or list(self.recipe.modes)
        return [self.measurement(kind, mode, tasks) for mode in modes for kind in KINDS if kind in self.settings.only
                for tasks in self._scopes(kind)]  # fmt: skip

    def _scopes(self, kind: str) -> list[tuple[str, ...]]:
        if kind == "linearity":
            return [(task,) for task in self.tasks]
        return [*self.pairs] if kind == "planes" else [tuple(self.tasks)]

    def measurement(self, kind: str, mode: str, tasks: tuple[str, ...]) -> Measurement:
        """Return one measurement under these settings."""
        key = digest([CODE, kind, self.settings.of(kind), list(tasks), self.experts(mode, tasks)])
        return Measurement(kind, mode, tasks, key, self._passes(kind, mode, tasks))

    def _passes(self, kind: str, mode: str, tasks: tuple[str, ...]) -> int:
        """Return the largest number of forward passes; a tangent and its primal count as one each."""
        rows = {task: min(self.settings.rows, self._rows(task) or self.settings.rows) for task in tasks}
        if kind == "linearity":
            return (len(PATH) - 1 + 2) * sum(map(self._batches, rows.values()))
        if kind != "planes":
            return 0
        if not self.linear(mode):
            return len(grid(self.settings.points, self.settings.margin)) ** 2 * sum(map(self._batches, rows.values()))
        folder = self.run / "cache" / "columns" / mode
        absent = [task for task in tasks if not (folder / f"{task}-{self.settings.split}.safetensors").is_file()]
        return (1 + len(self.tasks)) * sum(self._batches(self._rows(task) or rows[task]) for task in absent)

    def linear(self, mode: str) -> bool:
        """Return whether planes of a mode come from columns: logits are linear in coefficients, and over classes."""
        linear = mode_of(self.recipe.modes[mode]).linear_in_coefficients
        family = FAMILIES.get(self.recipe.base.family)
        return linear and all(family.form(task).logits_over == "classes" for task in self.recipe.tasks)

    def _batches(self, rows: int) -> int:
        return -(-rows // self.recipe.evaluation.batch_size)

    def _rows(self, task: str) -> int | None:
        """Return the rows of the split, if the run records them."""
        path = self.run / "run.json"
        sizes = read_json(path).get("tasks", {}) if path.is_file() else {}
        return sizes.get(task, {}).get(self.settings.split)  # type: ignore[no-any-return]

    def experts(self, mode: str, tasks: Sequence[str]) -> list[str]:
        """Return the key of each expert of a mode."""
        return [self._stages[mode, task] for task in tasks]

    @cached_property
    def _stages(self) -> dict[tuple[str, str], str]:
        """The key of each expert, from its ``tangora.json``."""
        stages = {}
        for mode, task in itertools.product(self.recipe.modes, self.tasks):
            folder = self.run / "adapters" / mode / task
            stage = read_json(folder / "tangora.json").get("stage")
            stages[mode, task] = stage or load(folder).fingerprint
        return stages

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """Return the entries on disk with a valid key.

        Raises:
            DataError: the file is invalid.
        """
        path = self.run / "analysis" / f"{kind}.json"
        if not path.is_file():
            return []
        return [entry for entry in read_json(path).get("entries", []) if self._is_valid(kind, entry)]

    def _is_valid(self, kind: str, entry: Mapping[str, Any]) -> bool:
        mode, tasks = entry.get("mode"), tuple(entry.get("tasks", ()))
        if (mode or "") not in self.recipe.modes or not set(tasks) <= set(self.tasks):
            return False
        return self.measurement(kind, str(mode), tasks).key == entry.get("key")

    @cached_property
    def missing(self) -> list[Measurement]:
        """The measurements that are not on disk."""
        keys = {entry["key"] for kind in KINDS for entry in self.entries(kind)}
        return [measurement for measurement in self.measurements if measurement.key not in keys]

    def lines(self) -> Iterator[str]:
        """Yield lines that describe the measurements to do and their cost."""
        counts = {kind: sum(p.kind == kind for p in self.missing) for kind in self.settings.only}
        modes = ", ".join(self.settings.modes or self.recipe.modes)
        yield f"to compute: {', '.join(f'{n} {kind}' for kind, n in counts.items())} (modes {modes}); " + (
            f"{len(self.measurements) - len(self.missing)} of {len(self.measurements)} exist already"
        )
        if "planes" in self.settings.only:
            side = len(grid(self.settings.points, self.settings.margin))
            everything = len(_disjoint_first(self.tasks))
            more = f" of {everything}; --pairs names others" if len(self.pairs) < everything else ""
            yield f"pairs: {', '.join('+'.join(pair) for pair in self.pairs)}{more}"
            yield f"a plane: {side} x {side} models, {self.settings.rows} {self.settings.split} rows of each task"
        size = self.recipe.evaluation.batch_size
        passes = sum(measurement.passes for measurement in self.missing)
        yield f"at most {passes:,} forward passes of up to {size} rows"


def _disjoint_first(tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Return every pair, disjoint neighbours first, so that a few pairs cover many tasks."""
    disjoint = list(zip(tasks[::2], tasks[1::2], strict=False))
    return [*disjoint, *(pair for pair in itertools.combinations(tasks, 2) if pair not in disjoint)]


def _check_names(names: Sequence[str], valid: Sequence[str], where: str) -> None:
    for name in names:
        if name not in valid:
            raise ArgumentError("no such name", got=name, where=where, fix=did_you_mean(name, list(valid)))
