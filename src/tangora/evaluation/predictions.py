"""Predictions of fusions with a coefficient per task and site.

The explorer has one column per task and cannot compute them, so the run keeps them: ``RUN/cache/predictions.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import FileError
from tangora.support.files import read_json, write_text
from tangora.tasks.maps import packed

if TYPE_CHECKING:
    from tangora.evaluation.results import Outcome

__all__ = ["read_site_predictions", "write_site_predictions"]

_FILE = Path("cache") / "predictions.json"


def write_site_predictions(run: Path, outcomes: Sequence[Outcome], linear: Callable[[str], bool]) -> None:
    """Write those of the modes that are ``linear`` in the coefficients; write no file if there are none."""
    rows = [
        {
            "mode": o.mode,
            "method": o.method,
            "selection": o.selection,
            "subset": list(o.subset),
            "weights": o.coefficients["weights"],
            "predictions": {s: {t: packed(r.values) for t, r in results.items()} for s, results in o.results.items()},
        }
        for o in outcomes
        if isinstance(o.coefficients.get("weights"), dict) and linear(o.mode)
    ]
    if rows:
        write_text(run / _FILE, json.dumps({"rows": rows}, separators=(",", ":")))


def read_site_predictions(run: Path) -> list[dict[str, Any]]:
    """Return the predictions that `write_site_predictions` wrote.

    Raises:
        FileError: the file exists and is invalid.
    """
    if not (run / _FILE).is_file():
        return []
    rows = read_json(run / _FILE).get("rows")
    keys = {"mode", "method", "selection", "subset", "weights", "predictions"}
    if not isinstance(rows, list) or not all(isinstance(r, dict) and r.keys() >= keys for r in rows):
        raise FileError("no predictions in the file", where=run / _FILE, fix="delete it and run the recipe again")
    return rows
