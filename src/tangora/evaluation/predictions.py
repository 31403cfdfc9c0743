"""Predictions of fusions with a coefficient per task and site.

A page that holds one column a task cannot work them out again, so the run keeps them: ``RUN/cache/predictions.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import FileError
from tangora.support.files import read_json, write_text

if TYPE_CHECKING:
    from tangora.evaluation.results import Outcome

__all__ = ["read_apart", "write_apart"]

_FILE = Path("cache") / "predictions.json"


def write_apart(run: Path, outcomes: Sequence[Outcome], linear: Callable[[str], bool]) -> None:
    """Keep those of the modes that are ``linear`` in the coefficients; nothing is written where there are none."""
    rows = [
        {
            "mode": o.mode,
            "method": o.method,
            "selection": o.selection,
            "subset": list(o.subset),
            "weights": o.coefficients["weights"],
            "predictions": {s: {t: r.values for t, r in results.items()} for s, results in o.results.items()},
        }
        for o in outcomes
        if isinstance(o.coefficients.get("weights"), dict) and linear(o.mode)
    ]
    if rows:
        write_text(run / _FILE, json.dumps({"rows": rows}, separators=(",", ":")))


def read_apart(run: Path) -> list[dict[str, Any]]:
    """What `write_apart` kept.

    Raises:
        FileError: the file is there and cannot be right.
    """
    if not (run / _FILE).is_file():
        return []
    rows = read_json(run / _FILE).get("rows")
    keys = {"mode", "method", "selection", "subset", "weights", "predictions"}
    if not isinstance(rows, list) or not all(isinstance(r, dict) and r.keys() >= keys for r in rows):
        raise FileError("no predictions in the file", where=run / _FILE, fix="delete it and run the recipe again")
    return rows
