"""The sentences at the top of a report, and their caveats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tangora.report.doubts import notes
from tangora.report.means import Mean
from tangora.report.ordinary import in_words
from tangora.report.seeds import ENOUGH, named, spread
from tangora.report.summary import Key, Summary, mean_score, method_name, mode_name
from tangora.support.shown import decimal

__all__ = ["Headline", "Tile", "headline", "kept_text", "score_text"]


@dataclass(frozen=True)
class Tile:
    """A prominent number of the report."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Headline:
    """The main results of a run.

    Attributes:
        sentences: the fusions with the highest score and the largest kept share, with intervals.
        caveats: how to read them.
        tiles: the same numbers, shown prominently.
    """

    sentences: list[str]
    caveats: list[str]
    tiles: list[Tile]


def headline(summary: Summary) -> Headline:
    """Name the best absolute score and the best kept share; they need not be the same fusion."""
    means = summary.at_largest()
    top, keeper = summary.best(lambda m: summary.direction * m.score), summary.best(lambda m: m.kept)
    if not summary.direction:
        top = keeper or top
    if top is None:
        sentences = ["This run has experts and no fusion on the test split."]
        return Headline(sentences, notes(summary), _tiles(summary, None, None))
    sentences = [_top_sentence(summary, top, means, _praise(summary, top, keeper))]
    if keeper is not None and keeper != top:
        sentences.append(_keeper_sentence(keeper, means[keeper]))
    sentences.append(_references(summary))
    return Headline([s for s in sentences if s], _caveats(summary, top, means), _tiles(summary, top, keeper))


def score_text(mean: Mean) -> str:
    """Return a score with its interval, ``0.812 [0.803, 0.821]``, and its deviation over seeds if there are several."""
    return _bracketed(decimal(mean.score) + spread(mean.sd), mean.low, mean.high, decimal)


def kept_text(mean: Mean) -> str:
    """Return a kept share with its interval, ``91.2 % [90.1, 92.3]``; empty if it is unknown."""
    if mean.kept is None:
        return ""
    if mean.kept_sd is None:
        return _bracketed(percent(mean.kept), mean.kept_low, mean.kept_high, _points)
    text = f"{_points(mean.kept)}{spread(mean.kept_sd, number=_points)}\u00a0%"
    return _bracketed(text, mean.kept_low, mean.kept_high, _points)


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def percent(fraction: float) -> str:
    """Return ``0.912`` as ``91.2 %``."""
    return f"{100 * fraction:.1f}\u00a0%"


def _bracketed(text: str, low: float | None, high: float | None, number: Callable[[float], str]) -> str:
    return text if low is None or high is None else f"{text} [{number(low)},\u00a0{number(high)}]"


def _praise(summary: Summary, top: Key, keeper: Key | None) -> str:
    """What the fusion is the best of; empty if mean scores rank nothing, and shares are not known."""
    if not summary.direction:
        return "the most kept of" if keeper is not None else ""
    return "the best score, and the most kept, of" if top == keeper else "the best score of"


def _top_sentence(summary: Summary, top: Key, means: dict[Key, Mean], praise: str) -> str:
    mean = means[top]
    count = len([k for k in summary.shown() if k in means])
    kept = f"keeps {kept_text(mean)} of its own experts" if mean.kept is not None else ""
    score = f"scores {score_text(mean)} on average" if summary.direction or not kept else ""
    praise = "" if count == 1 or not praise else f": {praise} {count} fusions"
    where = f"{mean.n_tasks} tasks fused" + (f" ({mean.subsets} subsets)" if mean.subsets > 1 else "")
    where += f" and {len(summary.run.seeds)} seeds" if summary.run.seeds else ""
    mark = " (coefficients chosen on test: †oracle)" if top.oracle else ""
    return f"With {where}, {_full_name(top)}{mark} {' and '.join(filter(None, (score, kept)))}{praise}."


def _keeper_sentence(key: Key, mean: Mean) -> str:
    name = _full_name(key)
    name = name[0].upper() + name[1:]
    return f"{name} keeps most of its own experts, {kept_text(mean)}, at a score of {score_text(mean)}."


def _references(summary: Summary) -> str:
    if not summary.direction:
        return ""
    zero = mean_score(summary.zero_shot(_tasks(summary)))
    experts = ((mode_name(m), mean_score(summary.experts(m, _tasks(summary)))) for m in summary.run.modes)
    listed = [f"{name} {decimal(score)}" for name, score in experts if score is not None]
    parts = [f"the base model alone scores {decimal(zero)}"] if zero is not None else []
    parts += [f"the experts, one per task, {', '.join(listed)}"] if listed else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _caveats(summary: Summary, top: Key, means: dict[Key, Mean]) -> list[str]:
    texts = []
    low, high = means[top].low, means[top].high
    if not summary.direction:
        texts.append(
            "The tasks' metrics have no common scale, so that a mean score ranks nothing. Fusions are ranked by what "
            "they keep."
        )
    if low is not None and high is not None:
        texts.append(_intervals(summary))
        if not summary.run.summary:
            texts[-1] += " Those of the kept share hold the experts fixed."
        rivals = [m for k, m in means.items() if k != top and not k.oracle and _overlaps(m, low, high)]
        if rivals and summary.direction:
            also = "one other fusion" if len(rivals) == 1 else f"{len(rivals)} other fusions"
            texts.append(f"The interval of the best score overlaps with that of {also}.")
    texts.append(
        "Kept is relative to the same mode's experts: weak experts are easier to keep, so read it beside the score."
    )
    texts += notes(summary)
    texts += _statistics(summary)
    texts += _given(summary)
    if text := in_words(summary.run.both_ways, comparable=summary.direction != 0):
        texts.append(text)
    selections = {k.selection for k in means}
    if "validation" in selections:
        texts.append(
            "Coefficients were chosen on validation data; which fusion is best is said after seeing test scores."
        )
    if "oracle" in selections:
        texts.append("† oracle: coefficients chosen on the test split itself; an upper bound, not a result.")
    return texts


def _intervals(summary: Summary) -> str:
    """Return what the intervals are of."""
    seeds = summary.run.seeds
    if not seeds:
        return "Brackets are 95 % intervals from a bootstrap over test rows; training was not repeated."
    text = (
        f"Numbers are means over {named(seeds)}, ± is the standard deviation over them, and brackets are 95 % "
        "intervals from a bootstrap over seeds and test rows."
    )
    if len(seeds) < ENOUGH:
        text += f" {len(seeds)} seeds are few: how much others would differ is only partly in the intervals."
    return text


def _overlaps(mean: Mean, low: float, high: float) -> bool:
    return mean.low is not None and mean.high is not None and mean.low <= high and mean.high >= low


def _given(summary: Summary) -> list[str]:
    """Return a sentence on experts that the run was given."""
    modes: Any = summary.run.recipe.get("modes")
    listed = modes.items() if isinstance(modes, Mapping) else ()
    given = {str(mode): of["experts"] for mode, of in listed if isinstance(of, Mapping) and of.get("experts")}
    named = [f"{mode_name(mode)} ({', '.join(map(str, tasks))})" for mode, tasks in given.items()]
    if not named:
        return []
    what = f"Experts of {' and '.join(named)} were given, and not trained by this run"
    text = f"{what}: what they were trained on, perhaps also rows that are scored here, is unknown."
    return [f"{text} They are the same with every seed." if summary.run.seeds else text]


def _statistics(summary: Summary) -> list[str]:
    """Return a sentence on the rows that statistics were collected on."""
    by_mode = summary.run.info.get("statistics") or {}
    records = [record for by_task in by_mode.values() for record in by_task.values()]
    if not records:
        return []
    kinds = " and ".join(sorted({str(kind) for record in records for kind in record["kinds"]}))
    splits = " and ".join(sorted({str(record["split"]) for record in records}))
    most = max(record["rows"] for record in records)
    return [f"Methods that are given statistics ({kinds}) saw at most {most} {splits} rows of every task."]


def _tiles(summary: Summary, top: Key | None, keeper: Key | None) -> list[Tile]:
    means, tiles = summary.at_largest(), []
    if top is not None and summary.direction:
        tiles.append(Tile("Best score", decimal(means[top].score), f"{mode_name(top.mode)}, {top.name}"))
    kept = means[keeper].kept if keeper is not None else None
    if keeper is not None and kept is not None:
        tiles.append(Tile("Most kept", percent(kept), f"{mode_name(keeper.mode)}, {keeper.name}"))
    experts = [(s, m) for m in summary.run.modes if (s := mean_score(summary.experts(m, _tasks(summary)))) is not None]
    if experts and summary.direction:
        score, mode = max(experts, key=lambda e: summary.direction * e[0])
        tiles.append(Tile("Best experts", decimal(score), f"{mode_name(mode)}, one per task"))
    zero = mean_score(summary.zero_shot(_tasks(summary)))
    if zero is not None and summary.direction:
        tiles.append(Tile("Zero-shot", decimal(zero), "base model, no adapter"))
    return tiles


def _tasks(summary: Summary) -> list[str]:
    return summary.largest.split("+") if summary.largest else summary.run.tasks


def _full_name(key: Key) -> str:
    mode = "full fine-tuning" if key.mode == "full" else mode_name(key.mode)
    return f"{mode} with {method_name(key.method, key.space)}"
