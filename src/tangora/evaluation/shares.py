"""*Kept*, a model's share of an expert's score: one rule for runs, reports and `tangora tune`.

There is no share of an expert that is worse than the base alone (zero-shot), or worth nothing. A ratio to such a score
would reward a fusion for leaving the base as it is. Means over tasks leave the task out, for every model alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from tangora.support.seams import METRICS
from tangora.support.shown import decimal

if TYPE_CHECKING:
    from tangora.evaluation.bootstrap import Samples

__all__ = ["finite", "higher", "kept", "mean_share", "no_share", "rank_kept", "shares"]


def no_share(expert: float, zero_shot: float | None, *, higher_is_better: bool = True) -> str | None:
    """Return why there is no share of an expert's score; None if there is one.

    Args:
        expert: its score.
        zero_shot: the score of the base alone; None if it is not known.
        higher_is_better: whether a higher score is better.

    >>> no_share(0.4, 0.5), no_share(0.4, 0.5, higher_is_better=False), no_share(0.0, None)
    ('worse than zero-shot (0.400 against 0.500)', None, 'worth nothing (0.000)')
    """
    if zero_shot is not None and (expert < zero_shot if higher_is_better else expert > zero_shot):
        return f"worse than zero-shot ({decimal(expert)} against {decimal(zero_shot)})"
    if higher_is_better and not expert > 0:
        return f"worth nothing ({decimal(expert)})"
    return None


def kept(score: float, expert: float, zero_shot: float | None = None, *, higher_is_better: bool = True) -> float:
    """Return a model's share of an expert's score: 1 is as good as the expert. NaN if the expert has none: `no_share`.

    - Higher is better: ``score / expert``. An expert's score of 0 or below (a correlation) has no share.
    - Lower is better: ``expert / score``, so that twice the errors keep a half. A score of 0 has the share 1 of an
      expert with 0, and an infinite share of another. Of perplexities, which are at least 1, it is the ratio of the
      geometric means of the right tokens' probabilities: the model's by the expert's.

    Args:
        score: of the model.
        expert: of the expert.
        zero_shot: of the base alone. An expert that is worse has no share. None if it is not known.
        higher_is_better: whether a higher score is better.

    >>> kept(0.6, 0.8), kept(0.2, 0.1, higher_is_better=False)
    (0.7499999999999999, 0.5)
    >>> kept(0.3, 0.0), kept(0.3, 0.4, zero_shot=0.5)
    (nan, nan)
    """
    if no_share(expert, zero_shot, higher_is_better=higher_is_better) is not None:
        return math.nan
    if higher_is_better:
        return score / expert
    if score > 0:
        return expert / score
    return 1.0 if expert == score else math.inf


def finite(share: float) -> float | None:
    """Return a share; None if it is not finite."""
    return share if math.isfinite(share) else None


def mean_share(listed: Iterable[tuple[float | None, bool]]) -> float | None:
    """Return the mean of shares over tasks; None if no task is left, or one that counts has no finite share.

    Args:
        listed: for each task, the share, and whether the task is left out because its expert has no share.

    >>> mean_share([(0.5, False), (None, True)]), mean_share([(0.5, False), (None, False)])
    (0.5, None)
    """
    counted = [share for share, left_out in listed if not left_out]
    defined = [share for share in counted if share is not None]
    return fmean(defined) if defined and len(defined) == len(counted) else None


def rank_kept(scores: Mapping[str, float], experts: Mapping[str, float], metrics: Mapping[str, str]) -> float:
    """Return the mean ratio to the experts' scores over tasks, the rank of a candidate: the highest is the best.

    Here the expert's score is only a unit, in which scores of several metrics are added up. So it does not matter
    whether the expert is better than the base: without its task, nothing would keep candidates from ruining it. A task
    whose expert's score is 0 or below has no unit, and is left out for every candidate. If no task is left, the mean is
    0 for every candidate, and their losses decide. A candidate with a NaN score comes last.

    Args:
        scores: task -> the candidate's score.
        experts: task -> the score of its expert.
        metrics: task -> the name of its primary metric.

    >>> rank_kept({"a": 0.4, "b": 0.1}, {"a": 0.8, "b": -0.2}, {"a": "accuracy", "b": "matthews"})
    0.5
    """
    if any(math.isnan(value) for value in scores.values()):
        return -math.inf
    ratios = [kept(s, experts[t], higher_is_better=higher(metrics[t])) for t, s in scores.items()]
    defined = [ratio for ratio in ratios if not math.isnan(ratio)]
    return float(np.mean(defined)) if defined else 0.0


def shares(metric: str, drawn: Samples, expert: Samples) -> Samples:
    """Return the share on every resample; NaN, which intervals leave out, for one without a finite share.

    Whether an expert has a share is decided by all rows, not anew on each resample.
    """
    above, below = (drawn, expert) if higher(metric) else (expert, drawn)
    found: Samples = above / np.where(below > 0, below, np.nan)
    return found


def higher(metric: str) -> bool:
    """Return whether a higher score is better; of a metric that is not installed, it is assumed."""
    return metric not in METRICS or METRICS.get(metric).higher_is_better
