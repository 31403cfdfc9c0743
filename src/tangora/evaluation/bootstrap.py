"""Intervals by resampling rows, and seeds if there are several.

All candidates share the resamples, so that differences and ratios are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tangora.support.files import digest
from tangora.tasks import metrics
from tangora.tasks.maps import packed

if TYPE_CHECKING:
    from tangora.tasks import Task

__all__ = ["Bootstrap", "Draws", "Samples", "draws", "interval", "over_seeds", "seed_draws"]

Samples: TypeAlias = npt.NDArray[np.float64]
Draws: TypeAlias = npt.NDArray[np.int32]
_REMEMBERED = 2**26  # bytes of resamples to cache, since every candidate is scored on the same


@dataclass
class Bootstrap:
    """Resampled scores of predictions, with one fixed set of resamples per task.

    Args:
        tasks: provide targets and metrics.
        resamples: number of resamples.
        seed: determines the resamples together with the task's name.
    """

    tasks: Sequence[Task]
    resamples: int = 1000
    seed: int = 0
    _samples: dict[str, Samples] = field(default_factory=dict, repr=False)
    _counts: dict[tuple[str, str], npt.NDArray[np.int32]] = field(default_factory=dict, repr=False)

    def samples(self, task: Task, split: str, values: Sequence[Any], metric: str | None = None) -> Samples:
        """Return the scores of ``values`` on each resample of the split's rows, shape [resamples].

        Args:
            task: provides the targets.
            split: one of its splits.
            values: the predictions.
            metric: one of the task's; by default the primary one.
        """
        metric = metric or task.metric
        key = digest([task.name, split, metric, packed(values)])
        if key not in self._samples:
            counts = self._resamples(task, split)
            self._samples[key] = metrics.bootstrap(metric, values, task.splits[split].targets, counts)
        return self._samples[key]

    def _resamples(self, task: Task, split: str) -> npt.NDArray[np.int32]:
        """Return how often each resample contains each row, shape [resamples, rows]."""
        if (task.name, split) not in self._counts:
            counts = draws(self.seed, task.name, split, len(task.splits[split].targets), self.resamples)
            if counts.nbytes + sum(known.nbytes for known in self._counts.values()) > _REMEMBERED:
                self._counts.clear()
            self._counts[task.name, split] = counts
        return self._counts[task.name, split]


def draws(seed: int, task: str, split: str, rows: int, resamples: int) -> Draws:
    """Return how often each resample contains each of a split's rows, shape [resamples, rows].

    Args:
        seed: determines the resamples together with the names of task and split.
        task: its name.
        split: of its rows.
        rows: their number, also that of a resample.
        resamples: number of resamples.
    """
    generator = np.random.default_rng(int(digest([seed, task, split])[:16], 16))
    picks = generator.integers(0, rows, (resamples, rows))
    picks += rows * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=picks.size).astype(np.int32).reshape(picks.shape)


def seed_draws(seed: int, seeds: int, resamples: int) -> Draws:
    """Return how often each resample contains each seed, shape [resamples, seeds].

    Args:
        seed: determines the resamples together with the number of seeds.
        seeds: their number, also that of a resample.
        resamples: number of resamples.
    """
    generator = np.random.default_rng(int(digest([seed, "seeds", seeds])[:16], 16))
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.int32)


def over_seeds(samples: Sequence[Samples], drawn: Draws) -> Samples:
    """Return the mean over the drawn seeds on each resample, shape [resamples].

    Args:
        samples: of each seed, on the same resamples of rows.
        drawn: from `seed_draws`.

    >>> over_seeds([np.array([0.2, 0.4]), np.array([0.6, np.nan])], np.array([[1, 1], [2, 0]])).tolist()
    [0.4, 0.4]
    """
    total: Samples = np.zeros(len(drawn))
    for one, counts in zip(samples, drawn.T, strict=True):
        total += np.where(counts > 0, counts * one, 0.0)  # a seed that was not drawn may have an undefined score
    return total / len(samples)


def interval(samples: Samples) -> tuple[float, float]:
    """Return the central 95 % of bootstrap samples, without those that are not a number; NaN if none is one."""
    if np.isnan(samples).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return float(low), float(high)
