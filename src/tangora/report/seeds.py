"""What the files of a run of several seeds contain for each of them, and its means for tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from tangora.support.shown import decimal

if TYPE_CHECKING:
    from tangora.report.data import PolishRow, Training
    from tangora.report.ordinary import BothWays

__all__ = ["ENOUGH", "mean_polishes", "mean_training", "mean_ways", "named", "spread"]

_T = TypeVar("_T")
ENOUGH = 6
"""Seeds from which on an interval can cover 95 % of them: within the range of n, it misses their median with 2 · ½ⁿ."""


def named(seeds: Sequence[int]) -> str:
    """Return ``3 seeds (0, 1, 2)``; of many, how many there are.

    >>> named([0, 1, 2]), named(range(20))
    ('3 seeds (0, 1, 2)', '20 seeds')
    """
    return f"{len(seeds)} seeds" + (f" ({', '.join(map(str, seeds))})" if len(seeds) <= 5 else "")


def spread(deviation: float | None, *, number: Callable[[float], str] = decimal) -> str:
    """Return `` ± 0.012`` to follow a mean over seeds; nothing without a deviation."""
    return "" if deviation is None else f"\u00a0±\u00a0{number(deviation)}"


def mean_polishes(listed: Iterable[PolishRow]) -> list[PolishRow]:
    """Return the mean of each polish over seeds, with the curves of all seeds."""
    found = _grouped(listed, lambda p: (p.mode, p.method, p.space, p.subset, p.selection))
    return [
        replace(
            rows[0],
            before={task: fmean(row.before[task] for row in rows) for task in rows[0].before},
            after={task: fmean(row.after[task] for row in rows) for task in rows[0].after},
            scores={
                task: (fmean(row.scores[task][0] for row in rows), fmean(row.scores[task][1] for row in rows))
                for task in rows[0].scores
            },
            others=[row.curves for row in rows[1:]],
            steps=[row.step for row in rows],
        )
        for rows in found
    ]


def mean_training(listed: Sequence[Training]) -> Training:
    """Return the training of one expert with the means over seeds of its loss and its time, step by step.

    A training that stopped early has fewer steps: the mean is up to the last step of the shortest.
    """
    first = min(listed, key=lambda one: len(one.steps))
    losses = [dict(zip(one.steps, one.loss, strict=True)) for one in listed]
    steps = [step for step in first.steps if all(step in of for of in losses)]
    shortest = min((one.validation for one in listed), key=len)
    validation = [
        {name: fmean(one.validation[i].get(name, value) for one in listed) for name, value in point.items()}
        for i, point in enumerate(shortest)
    ]
    return replace(
        first,
        steps=steps,
        loss=[fmean(of[step] for of in losses) for step in steps],
        validation=validation,
        seconds=_mean([one.seconds for one in listed]),
    )


def mean_ways(listed: Iterable[BothWays], seeds: int) -> list[BothWays]:
    """Return the means over seeds of adapters that were scored both ways with every seed."""
    found = _grouped(listed, lambda one: (one.mode, one.name, one.split, str(one.in_peft)))
    return [
        replace(
            rows[0],
            scores={
                task: (fmean(row.scores[task][0] for row in rows), fmean(row.scores[task][1] for row in rows))
                for task in rows[0].scores
                if all(task in row.scores for row in rows)
            },
        )
        for rows in found
        if len(rows) == seeds
    ]


def _grouped(listed: Iterable[_T], key: Callable[[_T], Any]) -> list[list[_T]]:
    found: dict[Any, list[_T]] = {}
    for one in listed:
        found.setdefault(key(one), []).append(one)
    return list(found.values())


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined and len(defined) == len(values) else None
