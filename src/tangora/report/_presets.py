"""Presets of the explorer: coefficients from the run, per task vector or per task and site."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.evaluation.tables import BY_SEED
from tangora.methods import get
from tangora.report.data import read_scores
from tangora.report.summary import method_name
from tangora.support.json_text import parse_json

if TYPE_CHECKING:
    from tangora.config.recipe import FusionEntry, Recipe
    from tangora.evaluation.tables import Row

__all__ = ["SINGLE", "Preset", "from_scores", "per_site", "read_rows", "unknown"]

SINGLE = "best single λ"


@dataclass(frozen=True)
class Preset:
    """One button: a set of tasks and a coefficient for every vector, zero outside the set.

    Attributes:
        predictions: for coefficients per site, which have no sliders: split -> the class of each row of each task of
            the page, None for a task without predictions in the run. The weights are then means over sites.
        sites: number of sites.
        command: the command that makes this fusion.
    """

    label: str
    tasks: tuple[str, ...]
    weights: tuple[float, ...]
    source: str
    predictions: Mapping[str, list[list[int] | None]] | None = None
    sites: int = 0
    command: str | None = None


def from_scores(recipe: Recipe, scores: Iterable[Row], mode: str, vectors: Sequence[str]) -> list[Preset]:
    """Return presets from ``scores.csv``: linear methods with one weight per task, selected on validation or given."""
    entries = {entry.label: entry for entry in recipe.fusion.methods}
    presets: dict[tuple[str, tuple[str, ...]], Preset] = {}
    for row in scores:
        tasks = tuple(row.subset.split("+"))
        wanted = row.mode == mode and row.space == "delta" and row.selection in {"validation", "given"}
        if not wanted or row.method not in entries or not set(tasks) <= set(vectors):
            continue
        entry = entries[row.method]
        if entry.route is not None or entry.rank is not None or entry.polish is not None:
            continue  # no point of the page: no sum of the task vectors
        weights = _effective(entry, parse_json(row.coefficients or "{}"), len(tasks))
        if weights is not None and (label := _label(entry, row.selection)) is not None:
            placed = dict(zip(tasks, weights, strict=True))
            values = _rounded(placed.get(v, 0.0) for v in vectors)
            presets.setdefault((label, tasks), Preset(label, tasks, values, f"scores.csv, {row.selection}"))
    return list(presets.values())


def read_rows(run: Path, recipe: Recipe) -> list[Row]:
    """Return the rows of ``scores.csv``; with several seeds those of the first, whose columns the page has."""
    if not recipe.seeds:
        return read_scores(run / "scores.csv")
    return read_scores(run / BY_SEED, seed=recipe.first_seed)


def per_site(
    run: Path, recipe: Recipe, kept: Iterable[Mapping[str, Any]], mode: str, rows: Mapping[str, Mapping[str, list[int]]]
) -> Iterator[Preset]:
    """Yield fusions with a coefficient per task and site, from predictions in the run; the largest sets first.

    Args:
        run: the folder, which contains adapters and, for the largest set, the coefficients.
        recipe: the run's.
        kept: the entries from `tangora.evaluation.predictions.read_site_predictions`.
        mode: one of the recipe's.
        rows: task of the page -> split -> numbers of the rows that it shows.
    """
    entries = {entry.label: entry for entry in recipe.fusion.methods}
    of_mode = [k for k in kept if k["mode"] == mode and k["selection"] == "validation" and k["method"] in entries]
    for entry in sorted(of_mode, key=lambda k: -len(k["subset"])):
        tasks, sites = tuple(entry["subset"]), list(entry["weights"].values())
        if not set(tasks) <= set(rows):
            continue
        means = {task: sum(site[i] for site in sites) / len(sites) for i, task in enumerate(tasks)}
        yield Preset(
            entry["method"],
            tasks,
            _rounded(means.get(name, 0.0) for name in rows),
            f"a coefficient per task and layer: scores.csv, {entry['selection']}",
            {
                s: [_of(entry["predictions"].get(s, {}).get(n), rows[n][s]) for n in rows]
                for s in ("validation", "test")
            },
            len(sites),
            _command(run, recipe, entry),
        )


def unknown(scores: Iterable[Row], kept: Iterable[Mapping[str, Any]], mode: str) -> list[str]:
    """Return methods of ``scores.csv`` with a coefficient per site and without predictions in the run."""
    chosen = (row for row in scores if row.mode == mode and row.selection == "validation")
    per_site_methods = {r.method for r in chosen if isinstance(parse_json(r.coefficients or "{}").get("weights"), dict)}
    return sorted(per_site_methods - {entry["method"] for entry in kept if entry["mode"] == mode})


def _of(values: Sequence[int] | None, rows: Sequence[int]) -> list[int] | None:
    return None if values is None else [values[row] for row in rows]


def _command(run: Path, recipe: Recipe, entry: Mapping[str, Any]) -> str:
    """Return the command for the run's folder; its coefficients are a fused adapter's if it exists, else a file's."""
    adapters = [shlex.quote(f"adapters/{entry['mode']}/{task}") for task in entry["subset"]]
    fused = f"fused/{entry['mode']}/{entry['method']}/tangora.json"
    saved = len(entry["subset"]) == len(recipe.tasks) and (run / fused).is_file()
    weights = shlex.quote(fused) if saved else "weights.json"
    before = "" if saved else f"printf %s {shlex.quote(json.dumps(entry['weights']))} > weights.json && "
    return f"{before}tangora fuse {' '.join(adapters)} --method task_arithmetic --weights {weights} --out fused"


def _rounded(weights: Iterable[float]) -> tuple[float, ...]:
    """Round weights to the digits of the page's command."""
    return tuple(float(f"{weight:.6g}") for weight in weights)


def _label(entry: FusionEntry, selection: str) -> str | None:
    """Return the preset's name, or None if the page computes it itself."""
    if entry.search is not None:
        return entry.name or method_name(entry.search.name)
    if entry.method == "average":
        return None
    chosen = entry.method == "task_arithmetic" and entry.name is None and selection == "validation"
    return SINGLE if chosen else method_name(entry.label)


def _effective(entry: FusionEntry, coefficients: Mapping[str, Any], count: int) -> list[float] | None:
    """Return a linear method's factor of each task vector, or None if there is not one number per task."""
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
