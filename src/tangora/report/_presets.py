"""Coefficients worth a button: those that a run found, as one number per task vector, or apart from the sliders."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.methods import get
from tangora.report.summary import method_name

if TYPE_CHECKING:
    from tangora.config.recipe import FusionEntry, Recipe
    from tangora.evaluation.tables import Row

__all__ = ["SINGLE", "Preset", "from_scores", "per_site", "unknown"]

SINGLE = "best single λ"


@dataclass(frozen=True)
class Preset:
    """One button: a set of tasks and a coefficient for every vector, zero outside the set.

    Attributes:
        predictions: where there is a coefficient per site, which no slider has: split -> the class of each row of each
            task of the page, None of one that the run did not predict. The weights are then means over sites.
        sites: how many.
        command: that fuses it.
    """

    label: str
    tasks: tuple[str, ...]
    weights: tuple[float, ...]
    source: str
    predictions: Mapping[str, list[list[int] | None]] | None = None
    sites: int = 0
    command: str | None = None


def from_scores(recipe: Recipe, scores: Iterable[Row], mode: str, vectors: Sequence[str]) -> list[Preset]:
    """What ``scores.csv`` says of linear methods with one weight a task, chosen on validation rows or given."""
    entries = {entry.label: entry for entry in recipe.fusion.methods}
    found: dict[tuple[str, tuple[str, ...]], Preset] = {}
    for row in scores:
        tasks = tuple(row.subset.split("+"))
        wanted = row.mode == mode and row.space == "delta" and row.selection in {"validation", "given"}
        if not wanted or row.method not in entries or not set(tasks) <= set(vectors):
            continue
        entry = entries[row.method]
        weights = _effective(entry, json.loads(row.coefficients or "{}"), len(tasks))
        if weights is not None and (label := _label(entry, row.selection)) is not None:
            placed = dict(zip(tasks, weights, strict=True))
            values = _rounded(placed.get(v, 0.0) for v in vectors)
            found.setdefault((label, tasks), Preset(label, tasks, values, f"scores.csv, {row.selection}"))
    return list(found.values())


def per_site(
    run: Path, recipe: Recipe, kept: Iterable[Mapping[str, Any]], mode: str, rows: Mapping[str, Mapping[str, list[int]]]
) -> Iterator[Preset]:
    """Fusions with a coefficient per task and site, by the predictions that the run kept; the largest sets first.

    Args:
        run: the folder, in which the command finds adapters and, of the largest set, the coefficients.
        recipe: the run's.
        kept: what `tangora.evaluation.predictions.read_site_predictions` gives.
        mode: one of the recipe.
        rows: task of the page -> split -> numbers of the rows that it shows.
    """
    entries = {entry.label: entry for entry in recipe.fusion.methods}
    known = [k for k in kept if k["mode"] == mode and k["selection"] == "validation" and k["method"] in entries]
    for found in sorted(known, key=lambda k: -len(k["subset"])):
        tasks, sites = tuple(found["subset"]), list(found["weights"].values())
        if not set(tasks) <= set(rows):
            continue
        means = {task: sum(site[i] for site in sites) / len(sites) for i, task in enumerate(tasks)}
        yield Preset(
            found["method"],
            tasks,
            _rounded(means.get(name, 0.0) for name in rows),
            f"a coefficient per task and layer: scores.csv, {found['selection']}",
            {
                s: [_of(found["predictions"].get(s, {}).get(n), rows[n][s]) for n in rows]
                for s in ("validation", "test")
            },
            len(sites),
            _command(run, recipe, found),
        )


def unknown(scores: Iterable[Row], kept: Iterable[Mapping[str, Any]], mode: str) -> list[str]:
    """Methods of ``scores.csv`` with a coefficient per site, of which no predictions were kept."""
    chosen = (row for row in scores if row.mode == mode and row.selection == "validation")
    apart = {row.method for row in chosen if isinstance(json.loads(row.coefficients or "{}").get("weights"), dict)}
    return sorted(apart - {found["method"] for found in kept if found["mode"] == mode})


def _of(values: Sequence[int] | None, rows: Sequence[int]) -> list[int] | None:
    return None if values is None else [values[row] for row in rows]


def _command(run: Path, recipe: Recipe, found: Mapping[str, Any]) -> str:
    """With the coefficients from the adapter that the run fused, where it did; else written to a file first."""
    adapters = [shlex.quote(str(run / "adapters" / found["mode"] / task)) for task in found["subset"]]
    fused = run / "fused" / found["mode"] / found["method"] / "tangora.json"
    whole = len(found["subset"]) == len(recipe.tasks) and fused.is_file()
    weights = shlex.quote(str(fused)) if whole else "weights.json"
    before = "" if whole else f"printf %s {shlex.quote(json.dumps(found['weights']))} > weights.json && "
    return f"{before}tangora fuse {' '.join(adapters)} --method task_arithmetic --weights {weights} --out fused"


def _rounded(weights: Iterable[float]) -> tuple[float, ...]:
    """As many digits as the page's command gives."""
    return tuple(float(f"{weight:.6g}") for weight in weights)


def _label(entry: FusionEntry, selection: str) -> str | None:
    """None for what the page works out by itself."""
    if entry.search is not None:
        return entry.name or method_name(entry.search.name)
    if entry.method == "average":
        return None
    chosen = entry.method == "task_arithmetic" and entry.name is None and selection == "validation"
    return SINGLE if chosen else method_name(entry.label)


def _effective(entry: FusionEntry, coefficients: Mapping[str, Any], count: int) -> list[float] | None:
    """What a linear method multiplies each task vector by; None where that is not one number a task."""
    import torch  # deferred: torch takes a second

    method = get(entry.method)
    weights = coefficients.get("weights")
    if not method.linear or not isinstance(weights, list) or len(weights) != count:
        return None
    if not all(isinstance(w, (int, float)) for w in weights):
        return None
    parameters = {name: value for name, value in coefficients.items() if name != "weights"}
    column = torch.tensor(weights, dtype=torch.float64)[:, None]
    values: list[float] = method(torch.eye(count, dtype=torch.float64), weights=column, **parameters).tolist()
    return values
