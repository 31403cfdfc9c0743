"""Paired tests of a difference between two models on the same rows, and a correction for several of them. No torch.

Of two models that are equally good, it is chance which of them gave which of the two predictions of a row. So the two
predictions of each row are exchanged or not, in every way or in random ways, and the difference is computed again
(Fisher 1935; Noreen 1989, approximate randomization). Of a metric that is a mean over rows, this changes the signs of
the rows' differences. Of any other (BLEU, F1, a correlation), the metric of the whole corpus is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.evaluation.bootstrap import Samples, draws, interval, over_seeds, seed_draws
from tangora.support.files import digest
from tangora.tasks import metrics

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Pair", "PairedTest", "holm", "p_value", "paired_test"]

_BLOCK = 2**23  # counts of rows at a time
_TIE = 1e-10  # relative to the difference: sums of equal terms in another order are equal
_ROUNDED = 1e-12  # relative to the scores: far above the rounding of their sums, and below any difference that matters


@dataclass(frozen=True)
class Pair:
    """The predictions of two models for the same rows of a task.

    Attributes:
        task: its name. Several pairs of one task (of several subsets) share resamples and exchanges of rows.
        metric: of the scores.
        targets: of the rows.
        first, second: the predictions.
        share: of the scores in the mean.
        seed: number of the seed that both were trained with. Several pairs of one seed share resamples of seeds.
    """

    task: str
    metric: str
    targets: Sequence[Any]
    first: Sequence[Any]
    second: Sequence[Any]
    share: float = 1.0
    seed: int = 0

    @property
    def differing(self) -> Bool[np.ndarray, " rows"]:
        """Which rows have two different predictions."""
        return np.array([not _same(a, b) for a, b in zip(self.first, self.second, strict=True)], dtype=bool)


@dataclass(frozen=True)
class PairedTest:
    """The result of `paired_test`.

    Attributes:
        first, second: mean scores of the two models.
        difference: ``second - first``.
        low, high: its 95 % interval from a paired bootstrap.
        p: two-sided p-value of the exchange of predictions.
        exact: whether ``p`` counts every exchange; else it is estimated from random ones.
        exchanges: number of exchanges: 2 to the power of ``differing`` if exact.
        differing: number of rows with two different predictions.
        by_seed: the difference with each seed.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    exact: bool
    exchanges: int
    differing: int
    by_seed: tuple[float, ...] = ()


def paired_test(
    pairs: Sequence[Pair], *, resamples: int = 1000, permutations: int = 10_000, seed: int = 0
) -> PairedTest:
    """Test the difference of two models' mean scores ``Σ share · score``.

    The interval resamples seeds, if there are several, and rows within tasks, the same ones for both models, as those
    of a run's report do. The exchange of a row's predictions is the same with every seed: predictions for one row
    depend on each other. The p-value is exact if all exchanges of the rows with different predictions are at most
    ``permutations``.

    Args:
        pairs: a task or several; with several seeds those of each, with its share.
        resamples: of the interval.
        permutations: largest number of exchanges.
        seed: of resamples and exchanges.

    >>> pair = Pair("a", "accuracy", [1, 1, 1, 1], first=[0, 0, 0, 1], second=[1, 1, 1, 1])
    >>> found = paired_test([pair])
    >>> found.difference, found.p, found.exchanges  # 3 rows differ: 2 of 8 exchanges are as far from 0
    (0.75, 0.25, 8)
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.task, []).append(pair)
    differing = {task: np.any([pair.differing for pair in group], axis=0) for task, group in groups.items()}
    count = sum(int(rows.sum()) for rows in differing.values())
    exact = count <= 60 and 2**count <= permutations
    swaps = dict(_every(differing, count) if exact else _random(differing, permutations, seed))
    drawn = sum((_exchanged(groups[task], rows, swaps[task]) for task, rows in differing.items()), np.zeros(1))
    first, second = (sum(pair.share * _score(pair, side) for pair in pairs) for side in ("first", "second"))
    low, high = interval(_resampled(groups, resamples, seed))
    sizes = [pair.share * abs(_score(pair, side)) for pair in pairs for side in ("first", "second")]
    p = p_value(second - first, drawn, exact=exact, size=sum(sizes))
    return PairedTest(first, second, second - first, low, high, p, exact, len(drawn), count, _by_seed(pairs))


def p_value(observed: float, drawn: Samples, *, exact: bool, size: float = 1.0) -> float:
    """Return the two-sided p-value of a difference: the share of exchanges that are at least as far from 0.

    Random exchanges count the observed one too, ``(1 + #) / (1 + exchanges)``, so that p is never 0 and the test keeps
    its level (Phipson and Smyth 2010). An exchange with an undefined score counts as far from 0.

    Args:
        observed: the difference.
        drawn: those of exchanges.
        exact: whether they are all exchanges.
        size: of the scores: differences that differ by no more than their rounding are equally far.

    >>> p_value(1.0, np.array([1.0, -1.0, 0.0, 0.5]), exact=True), p_value(1.0, np.array([0.0, 0.5, 0.2]), exact=False)
    (0.5, 0.25)
    """
    least = abs(observed) * (1 - _TIE) - _ROUNDED * size
    far = int((~(np.abs(drawn) < least)).sum())
    return far / len(drawn) if exact else (1 + far) / (1 + len(drawn))


def holm(values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (Holm 1979), in the order of ``values``.

    Of m values in ascending order, the i-th is ``max over j ≤ i of (m - j + 1) · p_j``, at most 1. Rejecting those
    below α keeps the probability of any false rejection below α, however the tests depend on each other.

    >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, most = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        most = max(most, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = most
    return adjusted


def _score(pair: Pair, side: str) -> float:
    return metrics.score(pair.metric, getattr(pair, side), pair.targets)


def _by_seed(pairs: Sequence[Pair]) -> tuple[float, ...]:
    """Return the difference with each seed alone."""
    found: dict[int, float] = {}
    for pair in pairs:
        found[pair.seed] = found.get(pair.seed, 0.0) + pair.share * (_score(pair, "second") - _score(pair, "first"))
    return tuple(len(found) * value for value in found.values())


def _every(differing: Mapping[str, Bool[np.ndarray, " rows"]], count: int) -> Iterator[tuple[str, Any]]:
    """Yield task -> every exchange of its differing rows, shape [exchanges, differing rows]."""
    numbers, start = np.arange(2**count), 0
    for task, rows in differing.items():
        own = np.arange(start, start + int(rows.sum()))
        start += len(own)
        yield task, (numbers[:, None] >> own[None]) & 1 == 1


def _random(
    differing: Mapping[str, Bool[np.ndarray, " rows"]], permutations: int, seed: int
) -> Iterator[tuple[str, Any]]:
    """Yield task -> random exchanges of its differing rows, each with probability ½."""
    for task, rows in differing.items():
        generator = np.random.default_rng(int(digest([seed, task, "exchange"])[:16], 16))
        yield task, generator.integers(0, 2, (permutations, int(rows.sum())), dtype=np.int8) == 1


def _exchanged(
    group: Sequence[Pair], differing: Bool[np.ndarray, " rows"], swaps: Bool[np.ndarray, "exchanges differing"]
) -> Float[np.ndarray, " exchanges"]:
    """Return a task's part of the difference after each exchange.

    Both models' predictions are listed one after the other, and counts select one of the two for each row: so that
    metrics compute it as they compute resamples, without a pass per exchange.
    """
    chosen = np.flatnonzero(differing)
    rows, size = len(differing), max(1, _BLOCK // (len(differing) + len(chosen)))
    parts = []
    for start in range(0, len(swaps), size):
        block = swaps[start : start + size]
        first = _counts(rows, chosen, ~block)
        second = _counts(rows, chosen, block)
        parts.append(sum(pair.share * _part(pair, chosen, second, first) for pair in group))
    return np.concatenate(parts)


def _counts(rows: int, chosen: Int[np.ndarray, " differing"], own: Bool[np.ndarray, "exchanges differing"]) -> Any:
    """Return how often each prediction counts: those of the first model, then the second's of differing rows."""
    counts = np.ones((len(own), rows + len(chosen)), dtype=np.int32)
    counts[:, chosen] = own
    counts[:, rows:] = ~own
    return counts


def _part(pair: Pair, chosen: Int[np.ndarray, " differing"], second: Any, first: Any) -> Samples:
    values = [*pair.first, *(pair.second[row] for row in chosen)]
    targets = [*pair.targets, *(pair.targets[row] for row in chosen)]
    one, other = (metrics.bootstrap(pair.metric, values, targets, counts) for counts in (first, second))
    difference: Samples = other - one
    return difference


def _resampled(groups: Mapping[str, Sequence[Pair]], resamples: int, seed: int) -> Samples:
    """Return the difference on each resample of seeds and rows."""
    totals: dict[int, Samples] = {}
    for task, group in groups.items():
        counts = draws(seed, task, "test", len(group[0].targets), resamples)
        for pair in group:
            one, other = (metrics.bootstrap(pair.metric, v, pair.targets, counts) for v in (pair.first, pair.second))
            total = totals.setdefault(pair.seed, np.zeros(resamples))
            total += pair.share * (other - one)
    return len(totals) * over_seeds(list(totals.values()), seed_draws(seed, len(totals), resamples))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)
