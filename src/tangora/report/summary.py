"""Summaries of a run: means over tasks, means over subsets, and the best fusions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from tangora.errors import FileError
from tangora.evaluation.seeds import deviation
from tangora.evaluation.shares import higher, mean_share, no_share
from tangora.evaluation.tables import Row
from tangora.report.data import PolishRow, Run
from tangora.report.means import Mean, interval_of, kept_interval, over_subsets
from tangora.tasks.metrics import direction

__all__ = ["Key", "Summary", "mean_score", "method_name", "mode_name"]

_SPELLED = {
    "lora": "LoRA",
    "l-lora": "L-LoRA",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "ties_per_tensor": "TIES per tensor",
    "ties_sum": "TIES sum",
    "dare": "DARE",
    "dare_ties": "DARE-TIES",
    "magnitude_prune": "magnitude prune",
    "lorahub": "LoraHub",
    "adamerging": "AdaMerging",
    "samerging": "SAMerging",
    "enmp": "ENMP",
}
"""Names with a conventional spelling; all other names are shown unchanged."""

_MEANS = {"mean", "mean_all"}  # in place of a task
_ROUNDED = 1e-4  # scores.csv has 6 digits


def mode_name(mode: str) -> str:
    """Return the conventional spelling of a mode."""
    return _SPELLED.get(mode, mode)


def method_name(method: str, space: str = "") -> str:
    """Return the conventional spelling of a method or search, with spaces other than ``delta``.

    >>> method_name("adamerging-site", "factors")
    'AdaMerging per site (factors)'
    """
    plain = method.removesuffix("-polished")
    stem = plain.removesuffix("-site")
    per_site = " per site" if stem != plain else ""
    polished = ", polished" if plain != method else ""
    return _SPELLED.get(stem, stem) + per_site + polished + (f" ({space})" if space not in ("", "delta") else "")


@dataclass(frozen=True, order=True)
class Key:
    """A fusion, for any subset."""

    mode: str
    method: str
    space: str
    selection: str

    @property
    def oracle(self) -> bool:
        """Whether the coefficients were chosen on the test split."""
        return self.selection == "oracle"

    @property
    def name(self) -> str:
        """Method and space, with the mark of an oracle."""
        return method_name(self.method, self.space) + (" †" if self.oracle else "")


class Summary:
    """Means of the test rows of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # A run of an earlier version has shares of experts that are worse than zero-shot.
        self.rows = [self._allowed(r) for r in run.scores if r.split == "test"]

    @cached_property
    def without_share(self) -> dict[tuple[str, str], str]:
        """Mode, task -> why there is no share of the expert on the test split, for the experts without one."""
        test = [r for r in self.run.scores if r.split == "test" and r.task not in _MEANS]
        zero = {r.task: r.score for r in test if r.method == "zero_shot"}
        experts = [r for r in test if r.method == "expert" and r.subset == r.task]
        reasons = {(r.mode, r.task): _reason(r, zero.get(r.task)) or _noted(r) for r in experts}
        return {place: reason for place, reason in reasons.items() if reason is not None}

    @cached_property
    def unshared(self) -> set[str]:
        """The tasks of which no mode's expert has a share."""
        test = (r for r in self.run.scores if r.split == "test" and r.method == "expert")
        places = {(r.mode, r.task) for r in test if r.subset == r.task}
        shared = {task for _, task in places - self.without_share.keys()}
        return {task for _, task in places} - shared

    def _allowed(self, row: Row) -> Row:
        """Return a row without the shares that do not exist."""
        if (row.mode, row.task) in self.without_share and row.normalized is not None:
            row = replace(row, normalized=None)
        return replace(row, normalized_best=None) if row.task in self.unshared else row

    def mean_kept(self, rows: Iterable[Row]) -> float | None:
        """Return the mean share of the own experts' scores, over the tasks whose expert has one."""
        return mean_share((r.normalized, (r.mode, r.task) in self.without_share) for r in rows)

    def mean_kept_best(self, rows: Iterable[Row]) -> float | None:
        """Return the mean share of the best modes' experts' scores, over the tasks that have one."""
        return mean_share((r.normalized_best, r.task in self.unshared) for r in rows)

    @cached_property
    def fused(self) -> dict[Key, dict[str, Mean]]:
        """Key, subset -> mean over the subset's tasks; keys in the order of modes, then of ``scores.csv``."""
        groups: dict[Key, dict[str, list[Row]]] = {}
        for row in self.rows:
            if row.method not in {"zero_shot", "expert"}:
                key = Key(row.mode, row.method, row.space, row.selection)
                groups.setdefault(key, {}).setdefault(row.subset, []).append(row)
        keys = sorted(groups, key=lambda k: self.run.modes.index(k.mode))
        return {k: {s: self._mean(rows) for s, rows in groups[k].items()} for k in keys}

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of fused tasks, ascending."""
        return sorted({m.n_tasks for subsets in self.fused.values() for m in subsets.values()})

    @cached_property
    def largest(self) -> str | None:
        """The subset with most tasks, the first one if there are several."""
        best = max(self.sizes, default=None)
        return next((s for v in self.fused.values() for s, m in v.items() if m.n_tasks == best), None)

    def at_largest(self) -> dict[Key, Mean]:
        """Return means over the subsets with most tasks (usually one), for the keys evaluated on them."""
        if not self.sizes:
            return {}
        means = {k: self.by_size(k) for k in self.fused}
        return {k: v[self.sizes[-1]] for k, v in means.items() if self.sizes[-1] in v}

    def _mean(self, rows: list[Row]) -> Mean:
        """Return the mean of the rows of one fusion of one subset."""
        everything = [r for r in rows if r.task not in _MEANS]
        inside = [r for r in everything if r.in_subset]
        reported = next((r for r in rows if r.task == "mean"), None)
        overall = next((r.score for r in rows if r.task == "mean_all"), None)
        if overall is None and everything:
            overall = fmean(r.score for r in everything)
        if reported is None and not inside:
            where = f"scores.csv, subset {rows[0].subset}"
            raise FileError("a fusion has no row of its own tasks", where=where, fix="write the file again")
        if reported is not None:
            n, score, low, high = reported.n_tasks, reported.score, reported.ci_low, reported.ci_high
        else:
            n, score = inside[0].n_tasks, fmean(r.score for r in inside)
            low, high = interval_of(inside, score)
        if inside:
            kept, kept_best = self.mean_kept(inside), self.mean_kept_best(inside)
        else:
            kept, kept_best = reported.normalized, reported.normalized_best  # type: ignore[union-attr]
        left_out = any((r.mode, r.task) in self.without_share for r in inside)  # then the score has other tasks
        sense = 0 if left_out else direction(r.metric for r in everything)
        return Mean(n, score, low, high, kept, *kept_interval(sense, score, low, high, kept), kept_best, overall)

    def by_size(self, key: Key) -> dict[int, Mean]:
        """Return the mean over the subsets of each size."""
        means = self.fused[key].values()
        sizes = sorted({m.n_tasks for m in means})
        return {n: self._paired(key, over_subsets([m for m in means if m.n_tasks == n])) for n in sizes}

    def _paired(self, key: Key, mean: Mean) -> Mean:
        """Return the mean with the intervals of ``summary.json``, which come from test rows, in place of ours."""
        entry = self.run.summary.get((key.mode, key.method, key.space, key.selection, mean.n_tasks))
        if entry is None or int(entry["subsets"] or 0) != mean.subsets:
            return mean
        seeds = self.run.seed_values.get((key.mode, key.method, key.space, key.selection, mean.n_tasks), {})
        scores, shares = (tuple(seeds.get(name, ())) for name in ("absolute", "kept"))
        mean = replace(mean, low=entry["absolute_low"], high=entry["absolute_high"])
        mean = replace(mean, seeds=scores, sd=deviation(scores))
        if mean.kept is None or entry["kept"] is None or abs(mean.kept - entry["kept"]) > _ROUNDED * abs(mean.kept):
            return replace(mean, kept_low=None, kept_high=None)  # of other tasks: an earlier version left none out
        mean = replace(mean, kept_low=entry["kept_low"], kept_high=entry["kept_high"])
        return replace(mean, kept_seeds=shares, kept_sd=deviation(shares))

    def shown(self) -> list[Key]:
        """Return the keys for figures: without oracles, unless a run has only oracles."""
        return [k for k in self.fused if not k.oracle] or list(self.fused)

    @cached_property
    def polishes(self) -> list[PolishRow]:
        """The polishes of the largest subset; those selected by an oracle only if there are no others."""
        rows = [row for row in self.run.polishes if row.subset == self.largest]
        return [row for row in rows if row.selection != "oracle"] or rows

    def experts(self, mode: str, tasks: Iterable[str] | None = None) -> dict[str, Row]:
        """Return each task's own expert."""
        own = {r.task: r for r in self.rows if r.method == "expert" and r.mode == mode and r.subset == r.task}
        return own if tasks is None else {t: own[t] for t in tasks if t in own}

    @cached_property
    def at_seeds(self) -> list[Summary]:
        """The summaries of each seed alone; none of a run of one."""
        return [Summary(self.run.at(seed)) for seed in self.run.seeds]

    def expert_deviation(self, mode: str, tasks: Iterable[str] | None = None) -> float | None:
        """Return the standard deviation over seeds of the mean of a mode's experts; None with one seed."""
        listed = None if tasks is None else list(tasks)
        return deviation([mean_score(of_seed.experts(mode, listed)) for of_seed in self.at_seeds])

    @cached_property
    def validated(self) -> dict[tuple[str, str], Row]:
        """Mode, task -> the task's own expert on the validation split."""
        experts = (r for r in self.run.scores if r.method == "expert" and r.split == "validation")
        return {(r.mode, r.task): r for r in experts if r.subset == r.task}

    @cached_property
    def zero_validated(self) -> dict[str, float]:
        """Task -> the base model's score on the validation split."""
        rows = (r for r in self.run.scores if r.method == "zero_shot" and r.split == "validation")
        return {r.task: r.score for r in rows}

    def zero_shot(self, tasks: Iterable[str] | None = None) -> dict[str, Row]:
        """Return the base model's scores."""
        rows = {r.task: r for r in self.rows if r.method == "zero_shot" and r.task not in _MEANS}
        return rows if tasks is None else {t: rows[t] for t in tasks if t in rows}

    def fused_scores(self, key: Key, subset: str) -> dict[str, Row]:
        """Return the per-task rows of one fusion."""
        return {
            r.task: r
            for r in self.rows
            if r.subset == subset and Key(r.mode, r.method, r.space, r.selection) == key and r.task not in _MEANS
        }

    @cached_property
    def metrics(self) -> dict[str, str]:
        """Task -> its metric."""
        return {r.task: r.metric for r in self.rows if r.task not in _MEANS}

    @cached_property
    def direction(self) -> int:
        """1 if a higher mean score is better, -1 if a lower one is; 0 if a mean ranks nothing."""
        return direction(self.metrics.values())

    def best(self, value: Callable[[Mean], float | None]) -> Key | None:
        """Return the key, from those of `shown`, with the highest value on the largest subset."""
        means = self.at_largest()
        candidates = [k for k in self.shown() if k in means and value(means[k]) is not None]
        return max(candidates, key=lambda k: float(value(means[k]) or 0.0), default=None)


def mean_score(rows: dict[str, Row]) -> float | None:
    """Return the mean of the scores, or None if there are none."""
    return fmean(r.score for r in rows.values()) if rows else None


def _reason(expert: Row, zero_shot: float | None) -> str | None:
    return no_share(expert.score, zero_shot, higher_is_better=higher(expert.metric))


def _noted(expert: Row) -> str | None:
    """Return the reason that the run noted: of scores that differ by less than the digits of ``scores.csv``."""
    _, found, reason = expert.note.partition(f"expert of {expert.task} is ")
    return reason if found and expert.normalized is None else None
