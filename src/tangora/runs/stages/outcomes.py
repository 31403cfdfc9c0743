"""The results of scoring jobs, as a value and as a file.

RUN/cache/outcomes/<key>.json
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tangora.errors import FileError
from tangora.evaluation.evaluator import Result
from tangora.evaluation.results import Outcome
from tangora.support.files import read_json, write_text
from tangora.tasks.maps import packed, unpacked

__all__ = ["Outcomes", "joined", "read_outcomes", "write_outcomes"]


@dataclass(frozen=True)
class Outcomes:
    """Chosen candidates with their results, and the candidates that they were chosen from.

    Attributes:
        chosen: in the order of the tables.
        selections: for each of these, the record of its search; None without a search.
        candidates: rows of ``candidates.csv``.
        searches: rows of ``searches.json``.
        polishes: rows of ``polish.json``.
    """

    chosen: Sequence[Outcome]
    selections: Sequence[Mapping[str, Any] | None]
    candidates: Sequence[Mapping[str, Any]] = field(default=())
    searches: Sequence[Mapping[str, Any]] = field(default=())
    polishes: Sequence[Mapping[str, Any]] = field(default=())


def joined(parts: Iterable[Outcomes]) -> Outcomes:
    """Return the concatenation of all parts."""
    listed = list(parts)
    return Outcomes(
        [one for part in listed for one in part.chosen],
        [one for part in listed for one in part.selections],
        [one for part in listed for one in part.candidates],
        [one for part in listed for one in part.searches],
        [one for part in listed for one in part.polishes],
    )


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write outcomes as one JSON file."""
    raw = {
        "chosen": [{**vars(one), "results": _plain(one.results)} for one in outcomes.chosen],
        "selections": list(outcomes.selections),
        "candidates": list(outcomes.candidates),
        "searches": list(outcomes.searches),
        "polishes": list(outcomes.polishes),
    }
    write_text(path, json.dumps(raw, separators=(",", ":"), ensure_ascii=False) + "\n")


def read_outcomes(path: Path) -> Outcomes:
    """Read the outcomes that `write_outcomes` wrote.

    Raises:
        FileError: the file is missing or invalid.
    """
    raw = read_json(path)
    try:
        chosen = [Outcome(**{**one, "subset": tuple(one["subset"]), "results": _results(one)}) for one in raw["chosen"]]
        return Outcomes(chosen, raw["selections"], raw["candidates"], raw["searches"], raw.get("polishes", ()))
    except (KeyError, TypeError, ValueError) as cause:
        raise FileError("no outcomes in the file", where=path, fix="delete it and run the recipe again") from cause


def _plain(results: Mapping[str, Mapping[str, Result]]) -> dict[str, dict[str, list[Any]]]:
    return {
        split: {task: list(vars(_in_json(result)).values()) for task, result in of_split.items()}
        for split, of_split in results.items()
    }


def _results(one: Mapping[str, Any]) -> dict[str, dict[str, Result]]:
    return {
        split: {task: _of_json(Result(*result)) for task, result in of_split.items()}
        for split, of_split in one["results"].items()
    }


def _in_json(result: Result) -> Result:
    return replace(result, values=packed(result.values))


def _of_json(result: Result) -> Result:
    return replace(result, values=unpacked(result.values))
