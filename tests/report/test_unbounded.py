"""A report of scores that have no upper bound, of which less is better: perplexities, alone and beside accuracies."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from synthetic import TASKS, make_run, write_csv
from test_summary import KEY, expert, row, summary_of

from tangora import report
from tangora.report import tables
from tangora.report.data import read_run
from tangora.report.figures import PLOTS, coefficient
from tangora.report.headline import headline
from tangora.report.summary import Key, Summary
from tangora.report.theme import WIDE, settle, style

BY_NAME = {plot.name: plot for plot in PLOTS}
A, B = TASKS[:2]


def perplexity(accuracy: float) -> float:
    """From 1.5 to tens of thousands, falling with the accuracy of the made-up run."""
    return math.exp(12 * (1 - accuracy))


def changed(folder: Path, tasks: list[str]) -> Path:
    """The made-up run, with perplexities for some of its tasks, and the experts' scores on validation rows."""
    make_run(folder, [A, B], with_means=False, with_analyses=False)
    (folder / "summary.json").unlink()
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    experts = {(r["mode"], r["task"]): perplexity(float(r["score"])) for r in rows if r["subset"] == r["task"]}
    for r in rows:
        if r["task"] in tasks:
            r |= {name: f"{perplexity(float(r[name])):.6g}" for name in ("score", "ci_low", "ci_high")}
            r |= {"metric": "perplexity", "ci_low": r["ci_high"], "ci_high": r["ci_low"]}
            best = min(value for (_, task), value in experts.items() if task == r["task"])
            r["normalized_best"] = f"{best / float(r['score']):.6g}"
            if r["mode"] != "-":
                r["normalized"] = f"{experts[r['mode'], r['task']] / float(r['score']):.6g}"
    own = [r | {"split": "validation"} for r in rows if r["method"] == "expert" and r["subset"] == r["task"]]
    write_csv(folder / "scores.csv", list(rows[0]), rows + own)
    with (folder / "candidates.csv").open() as file:
        tried = list(csv.DictReader(file))
    for r in tried:
        if r["task"] in tasks:
            r["score"] = f"{perplexity(float(r['score'])):.6g}"
    write_csv(folder / "candidates.csv", list(tried[0]), tried)
    polished = json.loads((folder / "polish.json").read_text())
    for r in polished["rows"]:
        r["scores"] |= {task: [20.0, 15.5] for task in tasks}
    (folder / "polish.json").write_text(json.dumps(polished))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Summary:
    """Two tasks, both scored by perplexity."""
    return Summary(read_run(changed(tmp_path_factory.mktemp("alone"), [A, B])))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Summary:
    """One task scored by perplexity, the other by accuracy."""
    return Summary(read_run(changed(tmp_path_factory.mktemp("mixed"), [B])))


def drawn(summary: Summary, name: str):
    with style(WIDE, name):
        figure = BY_NAME[name].draw(summary, WIDE)
        settle(figure)
    return figure


def test_the_lowest_mean_is_best(alone):
    assert alone.direction == -1
    means = alone.at_largest()
    lowest = min((key for key in means if not key.oracle), key=lambda key: means[key].score)
    tile = headline(alone).tiles[0]
    assert tile.label == "Best score"
    assert tile.value == tables.decimal(means[lowest].score)
    assert float(tile.value.replace(",", "")) > 1


def test_the_interval_of_a_share_is_turned_around():
    """Half the perplexity is twice the share: [8, 16] around 10 with a share of 0.4 is [0.25, 0.5]."""
    ends = {"metric": "perplexity", "normalized": 0.4, "ci_low": 8.0, "ci_high": 16.0, "subset": "a", "n_tasks": 1}
    mean = summary_of(row("a", 10.0, **ends)).fused[KEY]["a"]
    assert (mean.low, mean.high) == (8.0, 16.0)
    assert (mean.kept_low, mean.kept_high) == (pytest.approx(0.25), pytest.approx(0.5))


def test_large_numbers_are_short(alone):
    table = tables.overview(alone)
    zero = [float(cell.replace(",", "")) for cell in table.rows[0][6:]]
    assert zero == pytest.approx([alone.zero_shot()[task].score for task in (A, B)], rel=1e-3)
    assert max(zero) > 3000
    assert all(len(cell) <= 9 for line in table.rows for cell in line[6:])


def test_a_wide_range_has_logarithmic_axes(alone):
    assert drawn(alone, "score_by_tasks").axes[0].get_yscale() == "log"
    assert drawn(alone, "coefficient").axes[0].get_yscale() == "log"
    figure = drawn(alone, "per_task")
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    shortest = min(bar.get_width() for bar in axis.patches)
    assert 0 < axis.get_xlim()[0] < shortest, "every bar has a length"
    labels = {label.get_text() for axis in figure.axes for label in axis.get_xticklabels()}
    assert {"10", "100"} <= labels
    assert not any("$" in label for label in labels), "no TeX"


def test_scores_of_different_scales_have_no_mean(mixed):
    assert mixed.direction == 0
    found = headline(mixed)
    assert [tile.label for tile in found.tiles] == ["Most kept"]
    assert not any("scores" in sentence for sentence in found.sentences)
    assert any("no common scale" in caveat for caveat in found.caveats)
    assert {line[3] for line in tables.overview(mixed).rows} == {"–"}
    assert {cell for line in tables.by_size(mixed).rows for cell in line[3::3] + line[5::3]} == {"–"}
    for table in tables.terminal_tables(mixed):
        assert set(table.columns[0].cells) == {"–"}
    assert "no common scale" in str(BY_NAME["score_by_tasks"].absent(mixed))


def test_fewer_errors_are_a_gain(mixed):
    table = tables.polish(mixed)
    assert table is not None
    assert [line[-2:] for line in table.rows] == [["+0.050", "+4.500"]] * len(table.rows)


def test_bars_of_different_scales_are_shares(mixed):
    figure = drawn(mixed, "per_task")
    assert figure.get_supxlabel() == "share of the best expert's score"
    axis = next(a for a in figure.axes if a.get_title(loc="left") == "task arithmetic (factors)")
    key = next(k for k in mixed.fused if k.space == "factors")
    fused, experts = mixed.fused_scores(key, mixed.largest), mixed.experts("lora")
    best = {A: max(mixed.experts(m)[A].score for m in mixed.run.modes)}
    best[B] = min(mixed.experts(m)[B].score for m in mixed.run.modes)
    expected = [
        rows[A].score / best[A] if task == A else best[B] / rows[B].score
        for rows in (experts, fused)
        for task in (A, B)
    ]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(expected, rel=1e-5)
    assert (axis.get_xscale(), axis.get_xlim()[0]) == ("linear", 0.0)
    spans = [segment for lines in axis.collections[:2] for segment in lines.get_segments()]
    low, high = (point[0] for point in spans[1])  # the expert's perplexity
    own = experts[B]
    assert (low, high) == pytest.approx((best[B] / own.ci_high, best[B] / own.ci_low), rel=1e-5)


def test_curves_of_different_scales_are_shares(mixed):
    points = coefficient.curves(mixed)["lora", "task_arithmetic", "delta", "{}"]
    chosen = [c for c in mixed.run.candidates if (c.mode, c.method, c.space) == ("lora", "task_arithmetic", "delta")]
    score = {c.task: c.score for c in chosen if c.weights == [0.3, 0.3]}
    own = mixed.experts("lora")
    assert points[0.3] == pytest.approx((score[A] / own[A].score + own[B].score / score[B]) / 2, rel=1e-5)
    figure = drawn(mixed, "coefficient")
    assert figure.axes[0].get_ylabel() == "share of own experts"


def test_an_expert_without_a_validation_score_has_no_curve():
    assert coefficient.curves(summary_of(expert("a", 0.5), row("b", 9.0, metric="perplexity"))) == {}


def test_the_page(mixed, monkeypatch):
    few = ("score_by_tasks", "kept_by_tasks", "per_task", "coefficient")
    monkeypatch.setattr("tangora.report.html.PLOTS", [BY_NAME[name] for name in few])
    report.build(mixed.run.path)
    page = (mixed.run.path / "report.html").read_text(encoding="utf-8")
    assert "metrics have no common scale" in page
    assert "share of the best expert" in page
    assert Key("lora", "ties", "delta", "validation") in mixed.fused
    for score in (mixed.zero_shot()[B].score, mixed.experts("lora")[B].score):
        assert tables.decimal(score) in page
