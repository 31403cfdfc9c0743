"""Means over the tasks of a subset and over subsets, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tangora.evaluation.tables import Row

__all__ = ["Mean", "interval_of", "kept_interval", "mean_of", "over_subsets"]


@dataclass(frozen=True)
class Mean:
    """A mean over the tasks of one subset, or over several subsets of one size; with several seeds, over these too.

    Attributes:
        sd, kept_sd: standard deviations over seeds; None with one seed.
        seeds, kept_seeds: the values with each seed; none with one seed.
    """

    n_tasks: int
    score: float
    low: float | None
    high: float | None
    kept: float | None
    kept_low: float | None
    kept_high: float | None
    kept_best: float | None
    all_tasks: float | None
    subsets: int = 1
    sd: float | None = None
    kept_sd: float | None = None
    seeds: Sequence[float] = ()
    kept_seeds: Sequence[float] = ()


def kept_interval(
    sense: int, score: float, low: float | None, high: float | None, kept: float | None
) -> tuple[float | None, float | None]:
    """Return the score's interval as shares of fixed experts, which is all that ``scores.csv`` alone allows."""
    if not sense or kept is None or low is None or high is None or (score if sense > 0 else low) <= 0:
        return None, None
    return (low * kept / score, high * kept / score) if sense > 0 else (kept * score / high, kept * score / low)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None if there are no values or one is missing."""
    listed = list(values)
    return None if None in listed or not listed else fmean(v for v in listed if v is not None)


def interval_of(rows: list[Row], score: float) -> tuple[float | None, float | None]:
    """Return the interval of a mean; the tasks' test rows are independent, so half-widths add up in squares."""
    below = [r.score - r.ci_low for r in rows if r.ci_low is not None]
    above = [r.ci_high - r.score for r in rows if r.ci_high is not None]
    if len(below) < len(rows) or len(above) < len(rows):
        return None, None
    return score - math.hypot(*below) / len(rows), score + math.hypot(*above) / len(rows)


def over_subsets(means: list[Mean]) -> Mean:
    """Return the mean over subsets of one size, without intervals if there are several."""
    if len(means) == 1:
        return means[0]
    return Mean(
        n_tasks=means[0].n_tasks,
        score=fmean(m.score for m in means),
        low=None,
        high=None,
        kept=mean_of(m.kept for m in means),
        kept_low=None,
        kept_high=None,
        kept_best=mean_of(m.kept_best for m in means),
        all_tasks=mean_of(m.all_tasks for m in means),
        subsets=len(means),
    )
