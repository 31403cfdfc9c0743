"""Scores over several seeds: means, standard deviations, and intervals of a bootstrap over seeds and test rows.

A resample draws as many seeds as there are, with replacement, and rows of each task; a seed stands for everything that
was done with it, so tasks and methods share the drawn seeds. All seeds are scored on the same test rows, so they share
the drawn rows too. With one seed this is the bootstrap over rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.evaluation.bootstrap import Bootstrap, Draws, Samples, interval, over_seeds, seed_draws
from tangora.evaluation.references import References
from tangora.evaluation.results import Measure, MeasuredRow, Outcome, groups, measured_rows
from tangora.evaluation.tables import Row

if TYPE_CHECKING:
    from tangora.tasks import Task

__all__ = ["deviation", "rows_by_seed", "rows_over_seeds", "summary", "warned"]


def deviation(values: Sequence[float | None]) -> float | None:
    """Return the sample standard deviation (n - 1); None if a value is missing, or there are fewer than two.

    >>> deviation([1.0, 3.0, 5.0]), deviation([0.5]), deviation([0.5, None])
    (2.0, None, None)
    """
    defined = [value for value in values if value is not None]
    if len(defined) < max(2, len(values)):
        return None
    return stdev(defined) if np.isfinite(defined).all() else None


def rows_by_seed(
    by_seed: Mapping[int, Sequence[Outcome]], tasks: Sequence[Task], bootstrap: Bootstrap
) -> dict[int, list[MeasuredRow]]:
    """Return seed -> its rows, whose intervals are over test rows alone."""
    references = References.of_seeds(by_seed)
    return {seed: measured_rows(of, tasks, bootstrap, references[seed]) for seed, of in by_seed.items()}


def rows_over_seeds(by_seed: Mapping[int, Sequence[MeasuredRow]], bootstrap: Bootstrap) -> list[Row]:
    """Return the means over seeds, in the order of the first one's rows. With one seed they are its rows."""
    if len(by_seed) == 1:
        return [one.row for of_seed in by_seed.values() for one in of_seed]
    drawn = seed_draws(bootstrap.seed, len(by_seed), bootstrap.resamples)
    # What seeds share is listed first for all but the first of them, so that rows may be in another order.
    first, *others = [{_place(one.row): one for one in of_seed} for of_seed in by_seed.values()]
    return [_averaged([one, *(of_seed[place] for of_seed in others)], drawn) for place, one in first.items()]


def _averaged(same: Sequence[MeasuredRow], drawn: Draws) -> Row:
    """Return the mean of one row of each seed."""
    listed = [one.row for one in same]
    first = listed[0]
    scores, own, best = ([getattr(row, n) for row in listed] for n in ("score", "normalized", "normalized_best"))
    low, high = interval(over_seeds([one.samples for one in same], drawn))
    return replace(
        first,
        coefficients=first.coefficients if len({row.coefficients for row in listed}) == 1 else "",
        score=fmean(scores),
        normalized=_mean(own),
        normalized_best=_mean(best),
        ci_low=low,
        ci_high=high,
        seeds=len(listed),
        score_sd=deviation(scores),
        normalized_sd=deviation(own),
        normalized_best_sd=deviation(best),
    )


def _place(row: Row) -> tuple[str, ...]:
    return row.mode, row.method, row.space, row.subset, row.selection, row.task, row.split, row.metric


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if len(defined) == len(values) else None


def summary(
    by_seed: Mapping[int, Sequence[Outcome]], tasks: Sequence[Task], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Return, per mode, method, space, selection and number of tasks, means over subsets of absolute and kept scores.

    ``absolute`` is the mean test score over the tasks in a subset, by their primary metrics. ``kept`` is their mean
    share (`tangora.evaluation.shares.kept`) of the expert of the same mode and seed, and ``kept_best`` of the best
    mode's expert. Each has a paired bootstrap 95 % interval over seeds and test rows. Tasks whose expert has no share
    are left out of means of shares. A share is None if no task is left, or if it is infinite.

    With several seeds, each has its standard deviation over seeds too, and its value with every seed.
    """
    references, by_name = References.of_seeds(by_seed), {task.name: task for task in tasks}
    measures = [Measure(by_name, references[seed], bootstrap) for seed in by_seed]
    drawn = seed_draws(bootstrap.seed, len(by_seed), bootstrap.resamples)
    grouped = [groups(outcomes) for outcomes in by_seed.values()]
    table = []
    for head, members in grouped[0].items():
        entry: dict[str, Any] = dict(zip(("mode", "method", "space", "selection", "n_tasks"), head, strict=True))
        entry["subsets"] = len(members)
        for name in ("absolute", "kept", "kept_best"):
            found = [one.mean(of[head], name) for one, of in zip(measures, grouped, strict=True)]
            entry |= _entry(name, [one for one in found if one is not None], drawn)
        table.append(entry)
    return table


def _entry(name: str, found: Sequence[tuple[float, Samples]], drawn: Draws) -> dict[str, Any]:
    """Return the keys of one measure, from its value and samples with each seed."""
    several, more = drawn.shape[1] > 1, dict[str, Any]()
    if len(found) < drawn.shape[1]:
        more = {f"{name}_sd": None, f"{name}_seeds": None} if several else {}
        return {name: None, f"{name}_low": None, f"{name}_high": None, **more}
    values = [value for value, _ in found]
    low, high = interval(over_seeds([samples for _, samples in found], drawn))
    more = {f"{name}_sd": deviation(values), f"{name}_seeds": values} if several else {}
    return {name: fmean(values), f"{name}_low": low, f"{name}_high": high, **more}


def warned(by_seed: Mapping[int, Sequence[str]]) -> Iterator[str]:
    """Yield warnings of every seed once, with the seeds if it is not all of them."""
    for line in dict.fromkeys(line for lines in by_seed.values() for line in lines):
        seeds = [seed for seed, lines in by_seed.items() if line in lines]
        named = f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        yield line if len(seeds) == len(by_seed) else line + named
