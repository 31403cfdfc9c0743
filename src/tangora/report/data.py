"""Read and check the files of a run for a report.

Only ``scores.csv`` is required. Other missing files are noted in `Run.missing` with a reason, which the report prints
in place of the section.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tangora.errors import FileError
from tangora.evaluation.tables import BY_SEED, COLUMNS, SEED_COLUMNS, Row
from tangora.report.analyses import Analyses, read_analyses
from tangora.report.ordinary import BothWays, read_both_ways
from tangora.report.parsing import parsed
from tangora.report.seeds import mean_polishes, mean_training, mean_ways
from tangora.support.files import reachable, read_json
from tangora.support.json_text import parse_json
from tangora.support.yaml import parse

__all__ = [
    "SCORE_COLUMNS",
    "CandidateRow",
    "PolishRow",
    "Run",
    "Similarity",
    "Training",
    "read_run",
    "read_scored",
    "read_scores",
]

_T = TypeVar("_T")
SCORE_COLUMNS = [name for name in COLUMNS if name != "note"]  # which runs of earlier versions lack
# fmt: off
_CANDIDATE_COLUMNS = [
    "mode", "method", "space", "subset", "split", "weights", "parameters", "task", "score", "loss",
]
# fmt: on
_PLACE = ["mode", "method", "space", "subset", "selection", "coefficients", "task", "split"]  # of a score
_MEASURES = ["subsets", "absolute", "absolute_low", "absolute_high", "kept", "kept_low", "kept_high"]


@dataclass(frozen=True)
class CandidateRow:
    """One row of ``candidates.csv``."""

    mode: str
    method: str
    space: str
    subset: str
    split: str
    weights: Any
    parameters: str
    task: str
    score: float
    loss: float | None
    seed: int | None = None


@dataclass(frozen=True)
class Similarity:
    """Cosines between the task vectors of one mode."""

    tasks: list[str]
    cosine: list[list[float]]


@dataclass(frozen=True)
class Training:
    """One ``training.json``."""

    steps: list[int]
    loss: list[float]
    validation: Sequence[Mapping[str, float]]
    seconds: float | None
    trainable: int | None
    total: int | None


@dataclass(frozen=True)
class PolishRow:
    """One row of ``polish.json``.

    Attributes:
        mode, method, space, subset, selection: of the fusion, as in ``scores.csv``.
        curves: losses and held-out divergences by step.
        before, after: task -> mean divergence from its expert, in nats.
        scores: task -> test score of the fusion and of the polished adapter.
        rows: task -> rows without labels.
        step: the step that was kept.
        others: curves of the other seeds; then before, after and scores are means.
        steps: the step that was kept with each seed.
    """

    mode: str
    method: str
    space: str
    subset: str
    selection: str
    curves: Training
    before: Mapping[str, float]
    after: Mapping[str, float]
    scores: Mapping[str, tuple[float, float]]
    rows: Mapping[str, int]
    step: int
    others: Sequence[Training] = ()
    steps: Sequence[int] = ()


@dataclass(frozen=True)
class Run:
    """The contents of a report.

    Attributes:
        seeds: those of a run of several; then everything else is a mean over them, where it depends on the seed.
        by_seed: seed -> its scores.
        trainings: mode, task -> the training with each seed.
    """

    path: Path
    scores: list[Row]
    candidates: list[CandidateRow] = field(default_factory=list)
    similarity: Mapping[str, Similarity] = field(default_factory=dict)
    training: Mapping[tuple[str, str], Training] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[tuple[str, str, str, str, int], Mapping[str, float | None]] = field(default_factory=dict)
    seed_values: Mapping[tuple[str, str, str, str, int], Mapping[str, Sequence[float]]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    analyses: Analyses = field(default_factory=Analyses)
    polishes: Sequence[PolishRow] = ()
    both_ways: Sequence[BothWays] = ()
    seeds: Sequence[int] = ()
    by_seed: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    trainings: Mapping[tuple[str, str], Sequence[Training]] = field(default_factory=dict)

    def at(self, seed: int) -> Run:
        """Return the run with the scores of one of its seeds alone."""
        recipe = {**{key: value for key, value in self.recipe.items() if key != "seeds"}, "seed": seed}
        tried = [one for one in self.candidates if one.seed == seed]
        scores = list(self.by_seed[seed])
        return replace(self, scores=scores, candidates=tried, recipe=recipe, summary={}, seeds=(), by_seed={})

    @property
    def modes(self) -> list[str]:
        """Modes in the recipe's order."""
        return _ordered([*(self.recipe.get("modes") or ()), *(r.mode for r in self.scores)], drop={"-", ""})

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order of ``scores.csv``."""
        return _ordered((r.task for r in self.scores), drop={"mean", "mean_all"})


def read_run(path: Path) -> Run:
    """Read the files of a run.

    Raises:
        FileError: ``scores.csv`` is missing, or a file is invalid.
    """
    path = reachable(path)
    missing: dict[str, str] = {}
    recipe_text = _optional(path / "recipe.yaml", _text, "", missing)
    by_seed = _by_seed(path)
    count = max(1, len(by_seed))
    polishes: Sequence[PolishRow] = _optional(path / "polish.json", _polishes, [], {})
    folders = [path, *(path / "seeds" / str(seed) for seed in list(by_seed)[1:])]
    trainings = _training(folders, missing)
    return Run(
        path=path,
        scores=read_scores(path / "scores.csv"),
        candidates=_optional(path / "candidates.csv", _candidates, [], missing),
        similarity=_optional(path / "similarity.json", _similarity, {}, missing),
        training={place: mean_training(of) if len(of) > 1 else of[0] for place, of in trainings.items()},
        recipe=_mapping(recipe_text, path / "recipe.yaml"),
        recipe_text=recipe_text,
        info=_optional(path / "run.json", _info, {}, missing),
        summary=_optional(path / "summary.json", _summary, {}, {}),
        seed_values=_optional(path / "summary.json", _seed_values, {}, {}),
        warnings=_optional(path / "summary.json", _warnings, [], {}),
        missing=missing,
        analyses=read_analyses(path),
        polishes=mean_polishes(polishes) if by_seed else polishes,
        both_ways=mean_ways((one for at in folders for one in read_both_ways(at)), count),
        seeds=tuple(by_seed),
        by_seed=by_seed,
        trainings=trainings,
    )


def read_scored(path: Path, metric: str | None = None) -> Run:
    """Read the scores of a run, and its recipe if there is one.

    Args:
        path: the run's folder.
        metric: see `read_scores`.

    Raises:
        FileError: ``scores.csv`` is missing, or a file is invalid.
    """
    path = reachable(path)
    text = _optional(path / "recipe.yaml", _text, "", {})
    by_seed = _by_seed(path, metric)
    recipe = _mapping(text, path / "recipe.yaml")
    return Run(path, read_scores(path / "scores.csv", metric), recipe=recipe, seeds=tuple(by_seed), by_seed=by_seed)


def _by_seed(path: Path, metric: str | None = None) -> dict[int, list[Row]]:
    """Return seed -> its scores, of a run of several seeds."""
    if not (path / BY_SEED).is_file():
        return {}
    return {seed: read_scores(path / BY_SEED, metric, seed) for seed in _seeds(path / BY_SEED)}


def _seeds(path: Path) -> list[int]:
    lines = _rows(path, ["seed"])
    return list(dict.fromkeys(parsed(path, line, lambda row: int(row["seed"]), row) for line, row in lines))


def read_scores(path: Path, metric: str | None = None, seed: int | None = None) -> list[Row]:
    """Read ``scores.csv``; for a task with several metrics, only the rows of one.

    Args:
        path: of the file.
        metric: tasks without it are left out; None for the first one of each task, by which a run selects.
        seed: only its rows, of a file with a column of seeds.

    Raises:
        FileError: the file is missing, lacks a column, or has a cell of the wrong type.
    """
    if not path.is_file():
        raise FileError(
            "the run has no scores", where=path, fix="run it to the end first: tangora run RECIPE --out RUN"
        )
    first: dict[tuple[str, ...], Row] = {}
    for line, row in _rows(path, SCORE_COLUMNS):
        if metric in (None, row["metric"]) and (seed is None or row["seed"] == str(seed)):
            first.setdefault(tuple(row[name] for name in _PLACE), parsed(path, line, _score, row))
    return list(first.values())


def _score(row: Mapping[str, str]) -> Row:
    texts: dict[str, Any] = {
        k: row[k] for k in ("mode", "method", "space", "subset", "selection", "coefficients", "task", "split", "metric")
    }
    optional: dict[str, Any] = {k: _number(row[k]) for k in ("normalized", "normalized_best", "ci_low", "ci_high")}
    inside = row["in_subset"].strip().lower() in {"true", "1"}
    numbers: dict[str, Any] = {"n_tasks": int(row["n_tasks"]), "in_subset": inside, "score": float(row["score"])}
    spread: dict[str, Any] = {name: _number(row.get(name)) for name in SEED_COLUMNS if name != "seeds"}
    score = Row(**texts, **optional, **numbers, note=row.get("note") or "", seeds=int(row.get("seeds") or 1), **spread)
    _check_coefficients(parse_json(score.coefficients or "{}"), score.coefficients[:40])
    if score.method not in ("zero_shot", "expert") and score.mode in ("", "-"):
        raise ValueError("a fusion without a mode")
    return score


def _check_coefficients(raw: Any, text: str) -> None:
    """Refuse coefficients other than one number per task, or one per task and site, and parameters."""
    if not isinstance(raw, dict) or not isinstance(raw.get("parameters") or {}, dict):
        raise ValueError(f"coefficients are no table: {text}")
    weights = raw.get("weights") or []
    for row in weights.values() if isinstance(weights, dict) else [weights]:
        if not isinstance(row, list) or (not row and row is not weights):
            raise ValueError(f"weights are no lists: {text}")
        if not all(isinstance(weight, (int, float)) for weight in row):
            raise ValueError(f"weights are no numbers: {text}")


def _candidates(path: Path) -> list[CandidateRow]:
    return [parsed(path, line, _candidate, row) for line, row in _rows(path, _CANDIDATE_COLUMNS)]


def _candidate(row: Mapping[str, str]) -> CandidateRow:
    texts = {k: row[k] for k in ("mode", "method", "space", "subset", "split", "parameters", "task")}
    weights = parse_json(row["weights"] or "null")
    seed = int(row["seed"]) if row.get("seed") else None
    return CandidateRow(**texts, weights=weights, score=float(row["score"]), loss=_number(row["loss"]), seed=seed)


def _summary(path: Path) -> dict[tuple[str, str, str, str, int], dict[str, float | None]]:
    rows = parsed(path, "rows", lambda raw: list(raw["rows"] or ()), read_json(path))
    return dict(parsed(path, f"row {i}", _summary_entry, row) for i, row in enumerate(rows))


def _warnings(path: Path) -> list[str]:
    return parsed(path, "warnings", lambda raw: [str(line) for line in raw.get("warnings") or ()], read_json(path))


def _summary_entry(row: Mapping[str, Any]) -> tuple[tuple[str, str, str, str, int], dict[str, float | None]]:
    key = (str(row["mode"]), str(row["method"]), str(row["space"]), str(row["selection"]), int(row["n_tasks"]))
    return key, {name: None if row[name] is None else _finite(row[name]) for name in _MEASURES}


def _seed_values(path: Path) -> dict[tuple[str, str, str, str, int], dict[str, list[float]]]:
    """Return fusion -> ``absolute`` and ``kept`` with each seed, of a run of several."""
    found = {}
    for i, row in enumerate(parsed(path, "rows", lambda raw: list(raw["rows"] or ()), read_json(path))):
        key = parsed(path, f"row {i}", lambda row: _summary_entry(row)[0], row)
        values = {name: row.get(f"{name}_seeds") for name in ("absolute", "kept")}
        found[key] = {
            name: parsed(path, f"row {i}", lambda v: [_finite(x) for x in v], v) for name, v in values.items() if v
        }
    return {key: values for key, values in found.items() if values}


def _similarity(path: Path) -> dict[str, Similarity]:
    raw = read_json(path)
    return {
        mode: parsed(path, mode, lambda v: Similarity(list(v["tasks"]), _matrix(v)), value)
        for mode, value in raw.items()
    }


def _matrix(value: Mapping[str, Any]) -> list[list[float]]:
    size = len(value["tasks"])
    matrix = [[math.nan if x is None else float(x) for x in row] for row in value["cosine"]]
    if [len(row) for row in matrix] != [size] * size:
        raise ValueError(f"the cosine matrix is not {size} by {size}")
    return matrix


def _training(folders: Sequence[Path], missing: dict[str, str]) -> dict[tuple[str, str], list[Training]]:
    """Return mode, task -> the training with each seed, from the folders with their adapters."""
    trainings: dict[tuple[str, str], list[Training]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("adapters/*/*/training.json"))):
        one = parsed(path, None, _one_training, read_json(path))
        trainings.setdefault((path.parts[-3], path.parts[-2]), []).append(one)
    if not trainings:
        missing["training.json"] = "there is no adapters/MODE/TASK/training.json in the run"
    return trainings


def _one_training(raw: Mapping[str, Any]) -> Training:
    losses = [float(x) for x in raw.get("loss") or ()]
    steps = [int(x) for x in raw.get("steps") or ()]
    if len(losses) != len(steps):
        raise ValueError(f"{len(steps)} steps and {len(losses)} losses")
    validation = [{str(k): float(v) for k, v in scores.items()} for scores in raw.get("validation") or ()]
    seconds, trainable, total = (raw.get(key) for key in ("seconds", "trainable", "total"))
    return Training(
        steps,
        losses,
        validation,
        None if seconds is None else float(seconds),
        None if trainable is None else int(trainable),
        None if total is None else int(total),
    )


def _polishes(path: Path) -> list[PolishRow]:
    rows = parsed(path, "rows", lambda raw: list(raw["rows"] or ()), read_json(path))
    return [parsed(path, f"row {i}", _polish, row) for i, row in enumerate(rows)]


def _polish(row: Mapping[str, Any]) -> PolishRow:
    names: dict[str, Any] = {name: str(row[name]) for name in ("mode", "method", "space", "subset", "selection")}
    before, after = ({str(k): _finite(v) for k, v in row[name].items()} for name in ("before", "after"))
    scores = {str(task): (_finite(pair[0]), _finite(pair[1])) for task, pair in row["scores"].items()}
    if not before or before.keys() != after.keys() or before.keys() != scores.keys():
        raise ValueError("before, after and scores need the same tasks")
    about = row["polished"]
    rows = {str(task): int(count) for task, count in about["rows"].items()}
    return PolishRow(
        **names,
        curves=_one_training(row),
        before=before,
        after=after,
        scores=scores,
        rows=rows,
        step=int(about["step"]),
    )


def _mapping(text: str, path: Path) -> Mapping[str, Any]:
    try:
        value = parse(text)
    except ValueError as cause:
        raise FileError("not readable as YAML", where=path, fix="write the file again") from cause
    raw = value if isinstance(value, dict) else {}
    if not isinstance(raw.get("modes") or {}, dict):
        raise FileError("modes must be a table", where=path, fix="write the file again")
    return raw


def _rows(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise FileError(f"not readable as CSV ({cause})", where=path, fix="write the file again") from cause
    if absent := [c for c in columns if c not in (reader.fieldnames or ())]:
        raise FileError(f"no column {', '.join(absent)}", where=path, fix="the file is not Tangora's, or is truncated")
    return rows


def _optional(path: Path, read: Callable[[Path], _T], default: _T, missing: dict[str, str]) -> _T:
    if not path.is_file():
        missing[path.name] = f"there is no {path.name} in the run"
        return default
    return read(path)


def _info(path: Path) -> Mapping[str, Any]:
    info = read_json(path)
    parsed(path, "statistics", _statistics, info.get("statistics") or {})
    return info


def _statistics(by_mode: Mapping[str, Any]) -> None:
    for by_task in by_mode.values():
        for record in by_task.values():
            if not isinstance(record["kinds"], list) or not isinstance(record["rows"], int):
                raise ValueError("they need kinds, a split and a number of rows")
            str(record["split"])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise FileError(f"not readable ({cause})", where=path, fix="write the file again") from cause


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value} is no finite number")
    return number


def _number(text: str | None) -> float | None:
    value = float(text) if text not in (None, "") else math.nan
    return None if math.isnan(value) else value


def _ordered(names: Iterable[str], drop: set[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name not in drop]
