"""Coefficients worth a button: those that a run found, as one number per task vector."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.report.summary import method_name

if TYPE_CHECKING:
    from tangora.recipe import FusionEntry, Recipe
    from tangora.report.data import Score

__all__ = ["SINGLE", "Preset", "from_scores"]

SINGLE = "best single λ"
_NAMES = {"convex": "convex", "adamerging": "AdaMerging", "minimax": "minimax", "lorahub": "LoraHub"}


@dataclass(frozen=True)
class Preset:
    """One button: a set of tasks and a coefficient for every vector, zero outside the set."""

    label: str
    tasks: tuple[str, ...]
    weights: tuple[float, ...]
    source: str


def from_scores(recipe: Recipe, scores: Iterable[Score], mode: str, vectors: Sequence[str]) -> list[Preset]:
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


def _rounded(weights: Iterable[float]) -> tuple[float, ...]:
    """As many digits as the page's command gives."""
    return tuple(float(f"{weight:.6g}") for weight in weights)


def _label(entry: FusionEntry, selection: str) -> str | None:
    """None for what the page works out by itself."""
    if entry.search is not None:
        return entry.name or _NAMES.get(entry.search, entry.search)
    if entry.method == "average":
        return None
    chosen = entry.method == "task_arithmetic" and entry.name is None and selection == "validation"
    return SINGLE if chosen else method_name(entry.label)


def _effective(entry: FusionEntry, coefficients: Mapping[str, Any], count: int) -> list[float] | None:
    """What a linear method multiplies each task vector by; None where that is not one number a task."""
    import torch

    from tangora.methods import get

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
