"""The values of a table for a paper: for each run, fusion, subset and task, and for the mean over a subset's tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.errors import ArgumentError
from tangora.evaluation.tables import Row
from tangora.report.data import Run
from tangora.report.doubts import unshared_notes
from tangora.report.summary import Key, Summary, mean_score
from tangora.support.validation import did_you_mean
from tangora.tasks.metrics import direction

if TYPE_CHECKING:
    from tangora.report.paper import TableSettings

__all__ = ["MEAN", "Method", "Value", "Values", "values_of"]

MEAN = "mean"  # a task cannot have this name, which scores.csv has too

Method: TypeAlias = tuple[str, str, str]
"""Method, space and selection, as in ``scores.csv``."""

_REFERENCES = ("zero_shot", "expert")
_UNLIKE = {"seed", "seeds", "name", "title", "description", "executor", "machine"}
"""Keys of a recipe that may differ between runs that differ in the seed."""


@dataclass(frozen=True)
class Value:
    """One value.

    Attributes:
        run: number of the run.
        seed: the seed, or 0 of a run of one.
        mode, method, n_tasks, task: what it is of; the task is `MEAN` for the mean over the subset's tasks.
        subset: names of the fused tasks.
        value: score or share; None if there is none.
    """

    run: int
    mode: str
    method: Method
    n_tasks: int
    task: str
    subset: str
    value: float | None
    seed: int = 0

    @property
    def tasks(self) -> frozenset[str]:
        """The fused tasks, whatever their order."""
        return frozenset(self.subset.split("+"))

    @property
    def is_reference(self) -> bool:
        """Whether it is of the base alone or of experts."""
        return self.method[0] in _REFERENCES


@dataclass(frozen=True)
class Values:
    """The values of a table.

    Attributes:
        listed: in the order of a report: zero-shot, then mode by mode experts and fusions.
        metrics: task -> its metric.
        labels: a name for each run.
        seeds: for each run, how many seeds it has.
        notes: what a reader should know.
    """

    listed: Sequence[Value]
    metrics: Mapping[str, str]
    labels: Sequence[str]
    seeds: Sequence[int]
    notes: Sequence[str]


def values_of(runs: Sequence[Run], settings: TableSettings) -> Values:
    """Return the values that a table shows.

    Raises:
        ArgumentError: there are none, the runs score a task by different metrics, or with ``over``, they do not differ
            in the seed alone.
    """
    if settings.over:
        _check_seeds(runs)
    each = [(i, seed, one) for i, run in enumerate(runs) for seed, one in _at_seeds(run)]
    summaries = [Summary(_of_split(one, settings.split)) for _, _, one in each]
    metrics: dict[str, str] = {}
    for summary in summaries:
        for task, metric in summary.metrics.items():
            if metrics.setdefault(task, metric) != metric:
                fix = "name a metric that all of them have: --metric"
                got = f"{metrics[task]} and {metric}"
                raise ArgumentError(f"the runs score {task} by different metrics", got=got, where="--metric", fix=fix)
    listed = [
        replace(value, seed=seed)
        for (i, seed, _), summary in zip(each, summaries, strict=True)
        for value in _of_run(i, summary, settings)
    ]
    _check(listed, summaries, settings)
    shown = {name for value in listed for name in value.subset.split("+")}
    notes = dict.fromkeys(note for summary in summaries for note in _notes(summary, settings))
    notes |= dict.fromkeys(_subset_notes(listed))
    shown_metrics = {task: metric for task, metric in metrics.items() if task in shown}
    return Values(listed, shown_metrics, _labels(runs), [max(1, len(run.seeds)) for run in runs], list(notes))


def _at_seeds(run: Run) -> list[tuple[int, Run]]:
    """Return each seed of a run with its scores."""
    return [(seed, run.at(seed)) for seed in run.seeds] or [(0, run)]


def _of_split(run: Run, split: str) -> Run:
    """Return the run with the scores of a split in place of those on test rows, without fusions that have none."""
    rows = [replace(row, split="test") for row in run.scores if row.split == split]
    scored = {_fusion(row) for row in rows if row.in_subset and row.task not in ("mean", "mean_all")}
    return replace(run, scores=[row for row in rows if _fusion(row) in scored or row.method in _REFERENCES])


def _fusion(row: Row) -> tuple[str, ...]:
    return row.mode, row.method, row.space, row.selection, row.subset


def _of_run(number: int, summary: Summary, settings: TableSettings) -> Iterator[Value]:
    keys = [key for key in summary.fused if _is_shown(key, settings)]
    by_key = {key: _subsets(summary, key) for key in keys}
    sizes = {subset.count("+") + 1 for subsets in by_key.values() for subset in subsets}
    if settings.n_tasks is not None:
        sizes &= {settings.n_tasks}
    elif "n_tasks" not in (settings.rows, settings.columns):
        sizes = {max(sizes)} if sizes else sizes
    chosen = {key: {s: r for s, r in subsets.items() if s.count("+") + 1 in sizes} for key, subsets in by_key.items()}
    used = list(dict.fromkeys(subset for subsets in chosen.values() for subset in subsets))
    if not used and not by_key and settings.n_tasks in (None, len(summary.run.tasks)):
        used = ["+".join(summary.run.tasks)]  # experts alone
    for subset in used if settings.value == "score" else ():  # zero-shot keeps nothing of an expert
        yield from _each(number, "-", ("zero_shot", "", ""), subset, summary.zero_shot(), summary, settings)
    for mode in summary.run.modes:
        if settings.modes and mode not in settings.modes:
            continue
        for subset in used:
            yield from _each(number, mode, ("expert", "", ""), subset, summary.experts(mode), summary, settings)
        for key in (key for key in chosen if key.mode == mode):
            for subset, rows in chosen[key].items():
                method = (key.method, key.space, key.selection)
                yield from _each(number, mode, method, subset, rows, summary, settings)


def _is_shown(key: Key, settings: TableSettings) -> bool:
    method = not settings.methods or key.method in settings.methods
    mode = not settings.modes or key.mode in settings.modes
    return method and mode and (settings.oracle or not key.oracle)


def _subsets(summary: Summary, key: Key) -> dict[str, dict[str, Row]]:
    """Return subset -> task -> row of a fusion."""
    found: dict[str, dict[str, Row]] = {subset: {} for subset in summary.fused[key]}
    for row in summary.rows:
        if row.subset in found and Key(row.mode, row.method, row.space, row.selection) == key:
            found[row.subset][row.task] = row
    return found


def _each(
    number: int,
    mode: str,
    method: Method,
    subset: str,
    rows: Mapping[str, Row],
    summary: Summary,
    settings: TableSettings,
) -> Iterator[Value]:
    """Yield the value of each task of a subset, and their mean."""
    tasks = subset.split("+")
    own = {task: rows[task] for task in tasks if task in rows}
    if not own:
        return
    for task, row in own.items():
        value = row.score if settings.value == "score" else row.normalized
        yield Value(number, mode, method, len(tasks), task, subset, value)
    mean = None
    if len(own) == len(tasks):
        if settings.value == "kept":
            mean = summary.mean_kept(own.values())
        elif direction(row.metric for row in own.values()):
            mean = mean_score(own)
    yield Value(number, mode, method, len(tasks), MEAN, subset, mean)


def _subset_notes(listed: Sequence[Value]) -> Iterator[str]:
    of_run: dict[int, set[frozenset[str]]] = {}
    for value in listed:
        of_run.setdefault(value.run, set()).add(value.tasks)
    if several := {len(found) for found in of_run.values() if len(found) > len({len(tasks) for tasks in found})}:
        yield f"means over {max(several)} subsets of tasks; a task's value is over the subsets with it"
    if len(set(map(frozenset, of_run.values()))) > 1:
        yield "runs fuse different tasks: their means are over different tasks, and do not compete"


def _notes(summary: Summary, settings: TableSettings) -> Iterator[str]:
    if settings.value == "kept":
        yield from unshared_notes(summary)


def _check(listed: Sequence[Value], summaries: Sequence[Summary], settings: TableSettings) -> None:
    """Refuse a table without values, and names that no run has."""
    modes = {mode for summary in summaries for mode in summary.run.modes}
    methods = {key.method for summary in summaries for key in summary.fused}
    for given, known, option in ((settings.modes, modes, "--mode"), (settings.methods, methods, "--method")):
        for name in given:
            if name not in known:
                raise ArgumentError("no run has this", got=name, where=option, fix=did_you_mean(name, sorted(known)))
    sizes = sorted({size for summary in summaries for size in summary.sizes})
    if settings.n_tasks is not None and settings.n_tasks not in {value.n_tasks for value in listed}:
        fix = f"there are fusions of {', '.join(map(str, sizes))}" if sizes else "there are no fusions"
        raise ArgumentError("no fusion of so many tasks", got=settings.n_tasks, where="--n-tasks", fix=fix)
    if not listed:
        fix = "choose another split or metric"
        raise ArgumentError("there are no scores to show", got=settings.split, where="--split", fix=fix)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return the names of the runs' folders; their paths, if two have one name."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _check_seeds(runs: Sequence[Run]) -> None:
    """Refuse runs that do not differ in the seed, or not in the seed alone."""
    for run in runs:
        if not run.seeds and "seed" not in run.recipe:
            raise ArgumentError("the run's recipe has no seed", where=run.path / "recipe.yaml", fix="leave --over out")
    seeds = [seed for run in runs for seed in run.seeds or [run.recipe["seed"]]]
    if len(seeds) < 2:
        fix = "give several runs of one recipe with different seeds, or a run with seeds"
        raise ArgumentError("a standard deviation needs two seeds", got=len(seeds), where="--over", fix=fix)
    if len(set(map(str, seeds))) < len(seeds):
        raise ArgumentError("two runs have the same seed", got=seeds, where="--over", fix="give each seed once")
    first = _settings(runs[0].recipe)
    for run in runs[1:]:
        if differing := list(_differing(first, _settings(run.recipe))):
            fix = "leave --over out, or give runs that differ in the seed alone"
            what = f"{run.path} and {runs[0].path} differ in more than the seed"
            raise ArgumentError(what, got=", ".join(differing[:8]), where="--over", fix=fix)


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in _UNLIKE}


def _differing(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Yield the keys with different values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            yield from _differing(one.get(key), other.get(key), f"{at}.{key}" if at else str(key))
    elif one != other:
        yield at
