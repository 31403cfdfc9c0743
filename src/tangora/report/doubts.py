"""What a reader of a run's scores should know: experts without shares, and searches that a single λ beats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tangora.evaluation.tables import Row
from tangora.report.summary import Key, Summary, mode_name
from tangora.support.json_text import parse_json
from tangora.support.shown import decimal
from tangora.tasks.metrics import direction

__all__ = ["Beaten", "beaten_searches", "notes", "single_weight", "unshared_notes"]


def notes(summary: Summary) -> list[str]:
    """Return a sentence for each expert without shares, and for each search that a single λ beats."""
    return [*unshared_notes(summary), *(one.sentence for one in beaten_searches(summary))]


def unshared_notes(summary: Summary) -> Iterator[str]:
    """Yield a sentence for each expert without shares."""
    for (mode, task), reason in summary.without_share.items():
        what = f"The {mode_name(mode)} expert of {task} is {reason}"
        yield f"{what}: what is kept of it is not computed, and means of kept leave it out."


@dataclass(frozen=True)
class Beaten:
    """A search whose fusion is worse than one with a single λ for all tasks, of the same mode and subset.

    Attributes:
        key: of the search.
        single: of the fusion with the best single λ.
        weight: this λ.
        scores: split -> mean score of the search, and of the single λ, on which the search is worse; of shares if
            the tasks' metrics have no common scale.
        shares: whether these are shares of the experts' scores.
        averaged: whether the λ is a mean over seeds.
    """

    key: Key
    single: Key
    weight: float
    scores: Mapping[str, tuple[float, float]]
    shares: bool = False
    averaged: bool = False

    @property
    def sentence(self) -> str:
        """The finding in words."""
        shown = (lambda x: f"{100 * x:.1f} %") if self.shares else decimal
        what = "keeps less than" if self.shares else "is worse than"
        where = " and ".join(
            f"{shown(own)} against {shown(best)} on {s} rows" for s, (own, best) in self.scores.items()
        )
        averaged = " on average over seeds" if self.averaged else ""
        return (
            f"{mode_name(self.key.mode)} with {self.key.name} {what} the best single λ "
            f"({self.single.name}, λ {self.weight:.3g}{averaged}): {where}."
        )


def beaten_searches(summary: Summary) -> list[Beaten]:
    """Return the searches of the largest subset that are worse than a single λ, on validation or on test rows.

    The single λ is the one that scores best on validation rows; on test rows if a run has no others. Oracles, which
    are chosen on test rows, do not count on either side.
    """
    subset = summary.largest
    if subset is None:
        return []
    splits = {split: _values(summary, split, subset) for split in ("validation", "test")}
    found = []
    for key in splits["test"]:
        if key.method in _searches(summary.run.recipe):
            found += [one for one in [_beaten(summary, key, splits, subset)] if one is not None]
    return found


def _beaten(summary: Summary, key: Key, splits: Mapping[str, Mapping[Key, float]], subset: str) -> Beaten | None:
    """Compare one search with the best single λ; None if it is at least as good everywhere."""
    sense = summary.direction or 1  # of shares more is better
    rivals = {
        other: weight
        for other in splits["test"]
        if other.mode == key.mode and other.method not in _trained(summary.run.recipe)
        if (weight := single_weight(summary, other, subset)) is not None
    }
    where = "validation" if all(rival in splits["validation"] for rival in rivals) else "test"
    best = max(rivals, key=lambda rival: sense * splits[where][rival], default=None)
    if best is None:
        return None
    worse = {
        split: (values[key], values[best])
        for split, values in splits.items()
        if key in values and best in values and sense * values[key] < sense * values[best]
    }
    averaged = bool(summary.run.seeds)
    shares = not summary.direction
    return Beaten(key, best, rivals[best], worse, shares=shares, averaged=averaged) if worse else None


def single_weight(summary: Summary, key: Key, subset: str) -> float | None:
    """Return the λ of a fusion with the same for all tasks and sites; None if there is none, or it is no number."""
    if summary.at_seeds:  # a λ of each seed's own is one too, and has no number
        of_seeds = [single_weight(one, key, subset) for one in summary.at_seeds]
        return None if None in of_seeds else fmean(weight for weight in of_seeds if weight is not None)
    texts = {row.coefficients for row in summary.fused_scores(key, subset).values()}
    try:
        raw = parse_json(texts.pop() or "{}") if len(texts) == 1 else {}
    except ValueError:
        return None
    weights = raw.get("weights") if isinstance(raw, Mapping) else None
    same = isinstance(weights, list) and bool(weights) and len(set(weights)) == 1
    return float(weights[0]) if same and isinstance(weights, list) else None


def _values(summary: Summary, split: str, subset: str) -> dict[Key, float]:
    """Return the mean over the subset's tasks of scores, or of shares if the metrics have no common scale."""
    names, found = subset.split("+"), dict[Key, dict[str, Row]]()
    for row in summary.run.scores:
        known = row.split == split and row.subset == subset and row.task in names
        if known and row.method not in ("zero_shot", "expert") and row.selection != "oracle":
            found.setdefault(Key(row.mode, row.method, row.space, row.selection), {})[row.task] = row
    values = {key: _mean(summary, rows) for key, rows in found.items() if len(rows) == len(names)}
    return {key: value for key, value in values.items() if value is not None}


def _mean(summary: Summary, rows: Mapping[str, Row]) -> float | None:
    if direction(row.metric for row in rows.values()):
        return fmean(row.score for row in rows.values())
    return summary.mean_kept(list(rows.values()))


def _searches(recipe: Mapping[str, Any]) -> set[str]:
    """Return the names in ``scores.csv`` of fusions with a search, or a router that learned."""
    from tangora.report.ways import entries  # deferred: that module imports configurations

    return {
        name
        for name, entry in entries(recipe).items()
        if entry.get("search") or (isinstance(entry.get("route"), Mapping) and entry["route"].get("objective"))
    }


def _trained(recipe: Mapping[str, Any]) -> set[str]:
    """Return the names in ``scores.csv`` of fusions that are more than one λ: searched, routed or polished."""
    from tangora.report.ways import entries  # deferred: as above

    listed = entries(recipe).items()
    return {name for name, entry in listed if any(entry.get(key) for key in ("search", "route", "polish"))}
