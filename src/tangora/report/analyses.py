"""Read and check the results of ``tangora analyze`` in a run, and average them by mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from tangora.report.parsing import parsed
from tangora.support.files import read_json

__all__ = ["Analyses", "PairwiseEntry", "PathEntry", "PlaneEntry", "read_analyses"]

_T = TypeVar("_T")
Matrix = list[list[float]]


@dataclass(frozen=True)
class PlaneEntry:
    """An entry of ``planes.json``; matrices have a row for each λ of the first task."""

    mode: str
    tasks: tuple[str, str]
    coefficients: list[float]
    error: Matrix
    loss: Matrix
    mean_error: float


@dataclass(frozen=True)
class PairwiseEntry:
    """An entry of ``signs.json`` or ``angles.json``: two numbers for every two tasks."""

    mode: str
    tasks: list[str]
    one: Matrix
    other: Matrix
    chance: tuple[float, float]

    def means(self) -> tuple[float, float]:
        """The mean of each over the pairs of tasks."""
        pairs = [(i, j) for i in range(len(self.tasks)) for j in range(i)]
        one, other = (fmean(m[i][j] for i, j in pairs) if pairs else math.nan for m in (self.one, self.other))
        return one, other

    def combined(self) -> Matrix:
        """One matrix: ``one`` below the diagonal, ``other`` above it."""
        size = range(len(self.tasks))
        return [[(self.one if i >= j else self.other)[i][j] for j in size] for i in size]


@dataclass(frozen=True)
class PathEntry:
    """An entry of ``linearity.json``: the gap along φ₀ + aτ of one expert."""

    mode: str
    task: str
    path: list[float]
    distance: list[float]
    agreement: list[float]


@dataclass(frozen=True)
class Analyses:
    """The results that exist in a run."""

    planes: Sequence[PlaneEntry] = ()
    signs: Sequence[PairwiseEntry] = ()
    angles: Sequence[PairwiseEntry] = ()
    paths: Sequence[PathEntry] = ()

    @property
    def modes(self) -> list[str]:
        """The modes of all results."""
        entries: list[PlaneEntry | PairwiseEntry | PathEntry] = [*self.planes, *self.signs, *self.angles, *self.paths]
        return list(dict.fromkeys(entry.mode for entry in entries))

    def means(self, mode: str) -> dict[str, float]:
        """Return the mean of each measure in one mode, over pairs or tasks, without missing measures."""
        values = {"mean ξ on [0, 1]²": _mean(p.mean_error for p in self.planes if p.mode == mode)}
        for entries, names in (
            (self.signs, ("sign conflict", "by magnitude")),
            (self.angles, ("common outputs", "common inputs")),
        ):
            means = [e.means() for e in entries if e.mode == mode]
            values |= {name: _mean(m[i] for m in means) for i, name in enumerate(names)}
        at_expert = [(p.distance[i], p.agreement[i]) for p in self.paths if p.mode == mode
                     for i, a in enumerate(p.path) if a == 1.0]  # fmt: skip
        values |= {name: _mean(g[i] for g in at_expert) for i, name in enumerate(("linearity gap", "agreement"))}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def read_analyses(run: Path) -> Analyses:
    """Read the files in ``RUN/analysis``, without entries on experts that were trained again since.

    Raises:
        FileError: a file is invalid.
    """
    return Analyses(
        planes=_entries(run, "planes", _plane),
        signs=_entries(run, "signs", lambda raw: _pairwise(raw, ("counted", "weighted"))),
        angles=_entries(run, "angles", lambda raw: _pairwise(raw, ("columns", "rows"))),
        paths=_entries(run, "linearity", _path),
    )


def _entries(run: Path, kind: str, parse: Callable[[Mapping[str, Any]], _T]) -> list[_T]:
    path = run / "analysis" / f"{kind}.json"
    if not path.is_file():
        return []
    entries = parsed(path, "entries", lambda raw: list(raw.get("entries") or ()), read_json(path))
    current = [parsed(path, f"entry {i}", lambda raw: _is_current(run, raw), raw) for i, raw in enumerate(entries)]
    return [parsed(path, f"entry {i}", parse, raw) for i, raw in enumerate(entries) if current[i]]


def _is_current(run: Path, raw: Mapping[str, Any]) -> bool:
    """Return whether the experts are still the analyzed ones, as far as the folder records it."""
    for task, stage in zip(raw["tasks"], raw["experts"], strict=True):
        if not all(isinstance(name, str) and Path(name).name == name for name in (raw["mode"], task)):
            continue  # it is the name of no folder
        file = run / "adapters" / raw["mode"] / task / "tangora.json"
        if file.is_file() and read_json(file).get("stage") not in (None, stage):
            return False
    return True


def _plane(raw: Mapping[str, Any]) -> PlaneEntry:
    first, second = map(str, raw["tasks"])
    coefficients = [float(c) for c in raw["coefficients"]]
    error, loss = (_matrix(raw[name], len(coefficients)) for name in ("error", "loss"))
    return PlaneEntry(str(raw["mode"]), (first, second), coefficients, error, loss, float(raw["mean_error"]))


def _pairwise(raw: Mapping[str, Any], names: tuple[str, str]) -> PairwiseEntry:
    tasks, chance = list(map(str, raw["tasks"])), raw.get("chance") or {}
    one, other = (_matrix(raw[name], len(tasks)) for name in names)
    expected = float(chance.get(names[0], 0.5)), float(chance.get(names[1], 0.5))
    return PairwiseEntry(str(raw["mode"]), tasks, one, other, expected)


def _path(raw: Mapping[str, Any]) -> PathEntry:
    (task,) = map(str, raw["tasks"])
    path, distance, agreement = ([float(x) for x in raw[name]] for name in ("path", "distance", "agreement"))
    if not len(path) == len(distance) == len(agreement):
        raise ValueError(f"{len(path)} points, {len(distance)} distances and {len(agreement)} agreements")
    return PathEntry(str(raw["mode"]), task, path, distance, agreement)


def _matrix(rows: Sequence[Sequence[float]], size: int) -> Matrix:
    matrix = [[float(x) for x in row] for row in rows]
    if [len(row) for row in matrix] != [size] * size:
        raise ValueError(f"a matrix is not {size} by {size}")
    return matrix


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else math.nan
