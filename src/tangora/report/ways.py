"""The ways to one model of several tasks, side by side: separate, fused, routed and jointly trained adapters.

Only a run that compares them has this section: one with a joint mode, or with a routed fusion. Scores come from
``scores.csv``; sizes from the headers of the adapters' files; costs from each ``training.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from tangora.adapters.metadata import read_metadata
from tangora.config.fusion import FusionEntry
from tangora.errors import FileError, TangoraError
from tangora.evaluation.seeds import deviation
from tangora.evaluation.shares import finite, higher, kept, mean_share
from tangora.evaluation.tables import Row
from tangora.report.summary import Key, Summary, mean_score, method_name, mode_name
from tangora.storage.header import read_header
from tangora.support.files import read_json
from tangora.support.seams import MODES, SEARCHES

__all__ = ["DATA", "GIVEN", "GROUPS", "Way", "entries", "reference", "ways"]

Group: TypeAlias = Literal["separate", "fused", "routed", "joint"]
GROUPS: tuple[Group, ...] = ("separate", "fused", "routed", "joint")

DATA = ("labels, task by task", "nothing more", "rows without labels", "a few labels", "labels of all tasks at once")
"""What a way needs: the first is what experts are trained on, the next three what a fusion needs besides them."""

GIVEN = "unknown: adapters were given"
"""What experts needed that a run was given."""

_WEIGHTS = ("adapter_model", "delta", "modules", "routed")


@dataclass(frozen=True)
class Way:
    """One way to a model of several tasks, on the largest subset.

    Attributes:
        name: of the mode, or of mode and method.
        group: of `GROUPS`.
        score: mean over the tasks; None if their metrics have no common scale.
        kept: mean of the share of the reference's experts, over the tasks whose expert has one.
        trainable: numbers that are trained, per task; None if nothing is recorded.
        stored: numbers in the files, per task.
        seconds: of training, of all tasks together; None if nothing is recorded.
        data: what it needs, of `DATA`.
        added: what has to be done for one more task.
        sd: standard deviation of the score over seeds; None with one seed.
    """

    name: str
    group: Group
    score: float | None
    kept: float | None
    trainable: float | None
    stored: float | None
    seconds: float | None
    data: str
    added: str
    sd: float | None = None


@dataclass(frozen=True)
class _Cost:
    """Numbers that are trained and stored for all tasks, and the time of it."""

    trainable: float | None
    stored: float | None
    seconds: float | None


def reference(summary: Summary) -> str | None:
    """Return the mode whose experts every way is compared with: the first that trains a task at a time."""
    return next((mode for mode in summary.run.modes if not _of_mode(summary, mode).joint), None)


def ways(summary: Summary) -> list[Way]:
    """Return the ways of a run, separate adapters first; none if it compares none with another."""
    named = entries(summary.run.recipe)
    routed = {label for label, entry in named.items() if entry.get("route")}
    modes = {mode: _of_mode(summary, mode) for mode in summary.run.modes}
    if not routed and not any(mode.joint for mode in modes.values()):
        return []
    tasks = summary.largest.split("+") if summary.largest else summary.run.tasks
    found = [_trained(summary, name, mode, tasks) for name, mode in modes.items()]
    for key in summary.at_largest():
        if not key.oracle:
            found.append(_fused(summary, key, named.get(key.method, {}), tasks))
    return sorted(found, key=lambda way: GROUPS.index(way.group))


@dataclass(frozen=True)
class _Mode:
    joint: bool
    extends: bool
    given: bool


def _of_mode(summary: Summary, name: str) -> _Mode:
    """Return what a registered mode says of itself; of one that is not installed here, nothing is known."""
    settings = (summary.run.recipe.get("modes") or {}).get(name)
    train = settings.get("train", "lora") if isinstance(settings, Mapping) else "lora"
    mode = MODES.get(train) if train in MODES else None
    given = isinstance(settings, Mapping) and bool(settings.get("experts"))
    return _Mode(bool(getattr(mode, "joint", False)), bool(getattr(mode, "extends", False)), given)


def entries(recipe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the name of a fusion in ``scores.csv`` -> its entry in the resolved recipe."""
    fusion = recipe.get("fusion")
    listed = fusion.get("methods") if isinstance(fusion, Mapping) else None
    found: dict[str, Mapping[str, Any]] = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping):
            found.setdefault(_label(entry), entry)
    return found


def _label(entry: Mapping[str, Any]) -> str:
    """Return the label of an entry; of one that needs a package that is not installed here, its name or method."""
    try:
        return FusionEntry.model_validate(entry).label
    except (ValidationError, TangoraError):
        return str(entry.get("name") or entry.get("method"))


def _trained(summary: Summary, name: str, mode: _Mode, tasks: list[str]) -> Way:
    rows = summary.experts(name, tasks)
    folders = [summary.run.path / "adapters" / name / task for task in tasks]
    if not mode.joint:
        data, added = (GIVEN, "train or find its adapter") if mode.given else (DATA[0], "train its adapter")
        return _way(summary, mode_name(name), "separate", rows, _cost(folders), data, added)
    added = "train it alone, from the others" if mode.extends else "train all tasks again"
    return _way(summary, mode_name(name), "joint", rows, _cost(folders, shared=True), DATA[4], added)


def _fused(summary: Summary, key: Key, entry: Mapping[str, Any], tasks: list[str]) -> Way:
    rows, mode = summary.fused_scores(key, summary.largest or ""), _of_mode(summary, key.mode)
    group: Group = "routed" if entry.get("route") else "fused"
    experts = _cost([summary.run.path / "adapters" / key.mode / task for task in tasks], shared=mode.joint)
    space = f"-{key.space}" if key.space != "delta" else ""
    folder = summary.run.path / "fused" / key.mode / f"{key.method}{space}"
    own = _made(folder)
    again = {"fused": "fuse again", "routed": "route again"}[group]
    again = f"{again} and polish" if entry.get("polish") else again
    again = f"train all tasks again, {again}" if mode.joint and not mode.extends else f"train its adapter, {again}"
    name = f"{mode_name(key.mode)}, {method_name(key.method, key.space)}"
    trainable, seconds = _sum(experts.trainable, own.trainable), _sum(experts.seconds, own.seconds)
    cost = _Cost(trainable, _numbers(folder), seconds)
    return _way(summary, name, group, rows, cost, DATA[4] if mode.joint else _needed(entry), again)


def _made(folder: Path) -> _Cost:
    """Return what was trained after the experts: by a polish, or by a router that learned."""
    about = read_metadata(folder)
    selection = (about.fused.selection if about is not None and about.fused is not None else None) or {}
    record = _record(folder) or {"trainable": selection.get("trained"), "seconds": selection.get("seconds")}
    return _Cost(record.get("trainable"), None, record.get("seconds"))


def _sum(*parts: float | None) -> float | None:
    """Return the sum of the known parts; None if none is known."""
    known = [float(part) for part in parts if part is not None]
    return sum(known) if known else None


def _way(summary: Summary, name: str, group: Group, rows: Mapping[str, Row], cost: _Cost, data: str, added: str) -> Way:
    count = max(1, len(rows))
    score = mean_score(dict(rows)) if summary.direction else None
    per_task = [None if total is None else total / count for total in (cost.trainable, cost.stored)]
    sd = deviation([mean_score(_same(one, rows)) for one in summary.at_seeds])
    return Way(name, group, score, _kept(summary, rows), per_task[0], per_task[1], cost.seconds, data, added, sd)


def _kept(summary: Summary, rows: Mapping[str, Row]) -> float | None:
    """Return the mean share of the reference's experts; with several seeds the mean of the share with each."""
    if summary.at_seeds:
        shares = [_kept(one, _same(one, rows)) for one in summary.at_seeds]
        return None if None in shares else fmean(share for share in shares if share is not None)
    mode = reference(summary)
    experts = summary.experts(mode, rows) if mode is not None else {}
    left_out = [(mode, task) in summary.without_share for task in rows]
    shares = [_share(summary, row, experts.get(task)) for task, row in rows.items()]
    return mean_share(zip(shares, left_out, strict=True))


def _same(summary: Summary, rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows of the same experts or fusion in the scores of one seed."""
    wanted = {_place(row) for row in rows.values()}
    found = {row.task: row for row in summary.rows if _place(row) in wanted}
    return {task: found[task] for task in rows if task in found}


def _place(row: Row) -> tuple[str, ...]:
    return row.mode, row.method, row.space, row.subset, row.selection, row.task


def _share(summary: Summary, row: Row, expert: Row | None) -> float | None:
    if expert is None:
        return None
    zero = summary.zero_shot([row.task]).get(row.task)
    zero_shot = zero.score if zero is not None else None
    return finite(kept(row.score, expert.score, zero_shot, higher_is_better=higher(row.metric)))


def _needed(entry: Mapping[str, Any]) -> str:
    """Return what an entry of the recipe needs besides the experts."""
    search, route, polish = entry.get("search"), entry.get("route"), entry.get("polish")
    grid = any(isinstance(v, list) and len(v) > 1 for v in _lists(entry))
    labelled = grid and not isinstance(search, Mapping)
    if isinstance(search, Mapping):
        name = str(search.get("name"))
        labelled = bool(getattr(SEARCHES.get(name), "labelled", True)) if name in SEARCHES else True
    routed = route if isinstance(route, Mapping) else {}
    taught = isinstance(polish, Mapping) and bool(polish.get("labels"))
    if labelled or taught or routed.get("objective") == "labels":
        return DATA[3]
    return DATA[2] if polish or search or routed.get("objective") else DATA[1]


def _lists(entry: Mapping[str, Any]) -> Iterator[Any]:
    yield entry.get("weights")
    yield from (entry.get("parameters") or {}).values()


def _cost(folders: Sequence[Path], *, shared: bool = False) -> _Cost:
    """Return the cost of the adapters in some folders.

    Args:
        folders: one for each task.
        shared: whether one training made all of them: each has its record, and equal weights count once.
    """
    records = [_record(folder) for folder in folders]
    # each task has the record of the one training; of two stages, its own and that of the first, which all share
    records = [*records, records[0]["joint"]] if records and "joint" in records[0] else records[: 1 if shared else None]
    prints = {_digest(folder) if shared else str(folder): folder for folder in folders}
    stored = _sum(*map(_numbers, prints.values()))
    trainable, seconds = (_all(r.get(name) for r in records) for name in ("trainable", "seconds"))
    return _Cost(trainable, stored, seconds)


def _all(parts: Iterable[float | None]) -> float | None:
    """Return the sum; None if a part is unknown, as of a given adapter: the known ones would look like all of it."""
    listed = list(parts)
    return None if None in listed else _sum(*listed)


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / "training.json"
    return read_json(path) if path.is_file() else {}


def _files(folder: Path) -> list[Path]:
    """Return the weights of an adapter, without its heads."""
    return sorted(path for name in _WEIGHTS for path in folder.glob(f"{name}.safetensors"))


def _digest(folder: Path) -> str:
    """Return a digest of an adapter's weights, which adapters of one joint training may share."""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _numbers(folder: Path) -> float | None:
    """Return how many numbers an adapter's files contain, heads included; None if they cannot be read."""
    files = [*_files(folder), *sorted((folder / "heads").glob("*.safetensors"))]
    try:
        return float(sum(one.entries for path in files for one in read_header(path).values())) or None
    except FileError:
        return None
