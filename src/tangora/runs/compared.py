"""Compare the fusions of two runs, or of one, on the same test rows: differences, intervals, and corrected p-values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from tangora.errors import ArgumentError, FileError
from tangora.evaluation.significance import Pair, holm, paired_test
from tangora.report.summary import Key
from tangora.runs.comparison import Compared, CompareSettings, RunComparison
from tangora.runs.stages.scored_rows import ScoredRows, ScoredTask, read_scored_rows
from tangora.support.files import reachable, read_json
from tangora.support.validation import did_you_mean
from tangora.tasks.maps import unpacked
from tangora.tasks.metrics import direction

__all__ = ["compare_runs"]

Subset: TypeAlias = tuple[str, ...]
BySeed: TypeAlias = Mapping[int, Mapping[Subset, Mapping[str, Sequence[Any]]]]
_VALUES = 2  # place of the predictions in a result: after score and loss
_GROUPS = ("mode", "method", "space", "selection")


@dataclass(frozen=True)
class _Answers:
    """The predictions of a run.

    Attributes:
        run: its folder.
        rows: its test rows.
        fused: fusion, number of tasks -> seed -> subset -> task -> predictions.
    """

    run: Path
    rows: ScoredRows
    fused: Mapping[tuple[Key, int], BySeed] = field(repr=False)

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(self.rows.outcomes)


def compare_runs(first: Path, second: Path | None, settings: CompareSettings) -> RunComparison:
    """Compare every fusion that both runs have, or those of one run with a baseline.

    Args:
        first: a run, whose scores are subtracted.
        second: another one; None to compare the methods of the first with a baseline.
        settings: what is compared.

    Raises:
        ArgumentError: there is nothing to compare, tasks, metrics or rows differ, or the metrics have no mean.
        FileError: a folder is no run with recorded rows.
    """
    if (second is None) == (settings.baseline is None):
        fix = "give two runs, or one run and --baseline METHOD"
        got = "two runs and a baseline" if second is not None else "one run"
        raise ArgumentError("two things are compared", got=got, where="compare", fix=fix)
    one = _read(first)
    other = _read(second) if second is not None else one
    tasks = _tasks(one, other, settings)
    if second is not None:
        theirs = {_unselected(place): place for place in other.fused}
        pairs = [(place, theirs[like]) for place in one.fused if (like := _unselected(place)) in theirs]
        matched = [(b, one.fused[a], other.fused[b]) for a, b in pairs]
    else:
        matched = list(_with_baseline(one, settings))
    resamples, seed = settings.resamples or one.rows.resamples, settings.seed
    seed = one.rows.seed if seed is None else seed
    notes: list[str] = []
    seeds = _paired_seeds(one, other, notes)
    chosen = [match for match in matched if _is_chosen(match[0], settings)]
    found = [
        made
        for match in chosen
        if (made := _compared(*match, seeds, tasks, (resamples, seed), settings, notes)) is not None
    ]
    if not found:
        has = f"the first run has {_named(one)}; the second {_named(other)}"
        fix = has if second is not None else f"the run has {_named(one)}; the baseline is {settings.baseline}"
        raise ArgumentError("there is no fusion to compare", where="compare", fix=fix)
    adjusted = holm([made.test.p for made in found])
    listed = [replace(made, holm=p) for made, p in zip(found, adjusted, strict=True)]
    labels = _labels(one.run, other.run) if second is not None else (settings.baseline or "", "compared")
    metrics = {name: tasks[name].metrics[0] for made in listed for name in made.tasks}
    return RunComparison(labels, listed, metrics, settings.permutations, resamples, seed, notes)


def _read(run: Path) -> _Answers:
    run = reachable(run)
    if not (run / "scores.csv").is_file():
        raise FileError("not a run: scores.csv is missing", where=run, fix="give the folder that tangora run wrote")
    rows = read_scored_rows(run)
    fused: dict[tuple[Key, int], dict[int, dict[Subset, Mapping[str, Sequence[Any]]]]] = {}
    for trained, key in ((trained, key) for trained, keys in rows.outcomes.items() for key in keys):
        path = run / "cache" / "outcomes" / f"{key}.json"
        if not path.is_file():
            fix = "run its recipe again with the same --out: what is missing is scored again"
            raise FileError("the run's predictions are missing", where=path, fix=fix)
        try:
            for place, subset, values in _fusions(read_json(path)):
                fused.setdefault(place, {}).setdefault(trained, {})[subset] = values
        except (KeyError, TypeError, ValueError, IndexError) as cause:
            raise FileError("no outcomes in the file", where=path, fix="delete it and run the recipe again") from cause
    return _Answers(run, rows, fused)


def _fusions(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[Key, int], Subset, dict[str, Sequence[Any]]]]:
    """Yield each fusion in a file of outcomes, with its predictions; `read_outcomes` would import torch."""
    for one in raw["chosen"]:
        if one["method"] not in ("zero_shot", "expert") and one["selection"] != "oracle":
            subset: Subset = tuple(map(str, one["subset"]))
            results = one["results"]["test"]
            values: dict[str, Sequence[Any]] = {task: unpacked(results[task][_VALUES]) for task in subset}
            yield (Key(*(str(one[name]) for name in _GROUPS)), len(subset)), subset, values


def _tasks(one: _Answers, other: _Answers, settings: CompareSettings) -> dict[str, ScoredTask]:
    """Return the tasks that are compared, which must be the same in both runs.

    Raises:
        ArgumentError: they are not, and what differs.
    """
    known = one.rows.tasks
    for name in settings.tasks:
        if name not in known:
            raise ArgumentError("no such task", got=name, where="--task", fix=did_you_mean(name, list(known)))
    listed = {name: task for name, task in known.items() if not settings.tasks or name in settings.tasks}
    if differing := list(_differences(listed, other.rows.tasks, settings)):
        fix = "compare runs on the same rows, or only tasks that are the same: --task NAME"
        what = f"the runs have not scored the same: {'; '.join(differing)}"
        raise ArgumentError(what, where=f"{one.run} and {other.run}", fix=fix)
    return listed


def _paired_seeds(one: _Answers, other: _Answers, notes: list[str]) -> list[tuple[int, int]]:
    """Return the pairs of seeds that are compared: those that both runs have. Runs of one seed may have different ones.

    Raises:
        ArgumentError: a run has several seeds, and the other one has none of them.
    """
    if len(one.seeds) == len(other.seeds) == 1:
        return [(one.seeds[0], other.seeds[0])]
    common = [seed for seed in one.seeds if seed in other.seeds]
    if not common:
        got = " and ".join(", ".join(map(str, run.seeds)) for run in (one, other))
        fix = "compare runs with the same seeds: a run of more seeds adds to the folder that it is given"
        raise ArgumentError("the runs have no seed in common", got=got, where=f"{one.run} and {other.run}", fix=fix)
    left = [str(seed) for seed in dict.fromkeys([*one.seeds, *other.seeds]) if seed not in common]
    if left:
        notes.append(f"only one of the runs has seed{'s' if len(left) > 1 else ''} {', '.join(left)}: left out")
    return [(seed, seed) for seed in common]


def _differences(
    one: Mapping[str, ScoredTask], other: Mapping[str, ScoredTask], settings: CompareSettings
) -> Iterator[str]:
    yield from (f"task {name} is only in the first" for name in one if name not in other)
    more = [] if settings.tasks else [name for name in other if name not in one]
    yield from (f"task {name} is only in the second" for name in more)
    for name in (name for name in one if name in other):
        a, b = one[name], other[name]
        if a.metrics[0] != b.metrics[0]:
            yield f"metric of {name}: {a.metrics[0]} and {b.metrics[0]}"
        if len(a.targets) != len(b.targets):
            yield f"test rows of {name}: {len(a.targets):,} and {len(b.targets):,}"
        elif a.digest != b.digest:
            yield f"test rows of {name}: digests {a.digest[:12]} and {b.digest[:12]}"


def _with_baseline(run: _Answers, settings: CompareSettings) -> Iterator[tuple[tuple[Key, int], Any, Any]]:
    """Yield every other fusion of a mode and size, with the baseline's predictions first."""
    name, _, space = (settings.baseline or "").partition("/")
    baselines = [place for place in run.fused if place[0].method == name and place[0].space == (space or "delta")]
    if not baselines:
        known = sorted({_full(key) for key, _ in run.fused})
        fix = did_you_mean(settings.baseline or "", known)
        raise ArgumentError("the run has no such method", got=settings.baseline, where="--baseline", fix=fix)
    for key, count in run.fused:
        for baseline, size in baselines:
            if size == count and baseline.mode == key.mode and baseline != key:
                yield (key, count), run.fused[baseline, size], run.fused[key, count]


def _unselected(place: tuple[Key, int]) -> tuple[Key, int]:
    """Return a place without how its coefficients were chosen: given ones compete with chosen ones of one method."""
    return replace(place[0], selection=""), place[1]


def _is_chosen(place: tuple[Key, int], settings: CompareSettings) -> bool:
    key, count = place
    method = not settings.methods or key.method in settings.methods or _full(key) in settings.methods
    mode = not settings.modes or key.mode in settings.modes
    return method and mode and settings.n_tasks in (None, count)


def _compared(
    place: tuple[Key, int],
    one: BySeed,
    other: BySeed,
    seeds: Sequence[tuple[int, int]],
    tasks: Mapping[str, ScoredTask],
    drawn: tuple[int, int],
    settings: CompareSettings,
    notes: list[str],
) -> Compared | None:
    """Compare the means over the seeds, subsets and tasks that both have; None if there are none."""
    key, count = place
    first, second = one[seeds[0][0]], other[seeds[0][1]]  # all seeds of a run have the same subsets
    whole = [s for s in first if s in second and all(t in tasks for t in s)]
    subsets = whole if not settings.tasks else [s for s in first if s in second and any(t in tasks for t in s)]
    if (left := len({*first, *second}) - len([s for s in first if s in second])) and subsets:
        notes.append(f"{key.mode}, {_full(key)}, {count} tasks: {left} subsets are not in both, and left out")
    named = [(subset, [t for t in subset if t in tasks]) for subset in subsets]
    used = [name for name in tasks if any(name in inside for _, inside in named)]
    if not used:
        return None
    scale = direction(tasks[name].metrics[0] for name in used)
    if not scale:
        metrics = ", ".join(dict.fromkeys(tasks[name].metrics[0] for name in used))
        fix = "compare tasks of one metric: --task NAME"
        raise ArgumentError("scores of these metrics have no common scale, so no mean", got=metrics, fix=fix)
    pairs = [
        Pair(
            name,
            tasks[name].metrics[0],
            tasks[name].targets,
            one[own][subset][name],
            other[theirs][subset][name],
            1 / (len(seeds) * len(named) * len(inside)),
            number,
        )
        for number, (own, theirs) in enumerate(seeds)
        for subset, inside in named
        for name in inside
    ]
    found = paired_test(pairs, resamples=drawn[0], permutations=settings.permutations, seed=drawn[1])
    shown = [own for own, _ in seeds] if len(seeds) > 1 else []
    return Compared(key.mode, key.method, key.space, key.selection, count, len(named), used, found, seeds=shown)


def _full(key: Key) -> str:
    return key.method if key.space in ("", "delta") else f"{key.method}/{key.space}"


def _labels(one: Path, other: Path) -> tuple[str, str]:
    """Return the names of the folders; their paths, if both have one name."""
    names = one.resolve().name, other.resolve().name
    return names if names[0] != names[1] else (str(one), str(other))


def _named(run: _Answers) -> str:
    """Return the fusions of a run in words."""
    listed: Iterable[str] = sorted({f"{key.mode} {_full(key)} of {count}" for key, count in run.fused})
    return ", ".join(listed) or "no fusion"
