"""The test rows of a run, so that its predictions can be compared without its data.

RUN/cache/rows.json   per task its metric, a digest of its test rows as they are encoded, and their targets; and the
                      files of the outcomes, which hold the predictions
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import FileError
from tangora.support.files import read_json, write_text
from tangora.tasks.maps import packed, unpacked

if TYPE_CHECKING:
    from tangora.tasks import Task

__all__ = ["FILE", "ScoredRows", "ScoredTask", "read_scored_rows", "write_scored_rows"]

FILE = Path("cache") / "rows.json"


@dataclass(frozen=True)
class ScoredTask:
    """The test rows of a task.

    Attributes:
        metrics: the primary one first.
        digest: of inputs and targets, as the base reads them.
        targets: what metrics compare predictions with.
    """

    metrics: Sequence[str]
    digest: str
    targets: Sequence[Any]


@dataclass(frozen=True)
class ScoredRows:
    """The test rows of a run.

    Attributes:
        tasks: name -> rows, in the recipe's order.
        outcomes: seed -> keys of the jobs whose outcomes are those of ``scores.csv``.
        seed: the recipe's first, which determines the resamples of intervals.
        resamples: their number.
    """

    tasks: Mapping[str, ScoredTask]
    outcomes: Mapping[int, Sequence[str]]
    seed: int
    resamples: int


def write_scored_rows(
    run: Path, tasks: Sequence[Task], outcomes: Mapping[int, Sequence[str]], seed: int, resamples: int
) -> None:
    """Write the test rows of all tasks.

    Args:
        run: the run's folder.
        tasks: with a test split.
        outcomes: seed -> keys of the jobs with the predictions.
        seed, resamples: of the run's intervals.
    """
    rows = {
        task.name: {
            "metrics": list(task.metrics),
            "answers": task.form.kind,
            "digest": task.splits["test"].fingerprint,
            "targets": packed(task.splits["test"].targets),
        }
        for task in tasks
    }
    keys = {"seeds": outcomes} if len(outcomes) > 1 else {"outcomes": [key for of in outcomes.values() for key in of]}
    raw = {"seed": seed, "resamples": resamples, **keys, "tasks": rows}
    text = json.dumps(raw, separators=(",", ":"), ensure_ascii=False, default=lambda value: value.tolist())
    write_text(run / FILE, text + "\n")


def read_scored_rows(run: Path) -> ScoredRows:
    """Read what `write_scored_rows` wrote.

    Raises:
        FileError: the file is missing, as in a run of an earlier version, or invalid.
    """
    path = run / FILE
    if not path.is_file():
        fix = "run its recipe again with the same --out: only the tables are made again"
        raise FileError("the run has not recorded the rows that it scored", where=path, fix=fix)
    raw = read_json(path)
    try:
        tasks = {str(name): _task(one) for name, one in raw["tasks"].items()}
        seeds = raw["seeds"] if "seeds" in raw else {raw["seed"]: raw["outcomes"]}
        outcomes = {int(seed): [str(key) for key in keys] for seed, keys in seeds.items()}
        return ScoredRows(tasks, outcomes, int(raw["seed"]), int(raw["resamples"]))
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise FileError("no rows in the file", where=path, fix="delete it and run the recipe again") from cause


def _task(raw: Mapping[str, Any]) -> ScoredTask:
    targets = unpacked(raw["targets"])
    if raw["answers"] == "text":  # several references are a tuple, which JSON has not
        targets = [tuple(one) if isinstance(one, list) else one for one in targets]
    return ScoredTask([str(metric) for metric in raw["metrics"]], str(raw["digest"]), targets)
