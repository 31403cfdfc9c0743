"""Tables for papers, against the scores of a run that is made up."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from statistics import mean, stdev

import pytest
from synthetic import TASKS, make_run, write_csv

from tangora.errors import ArgumentError, FileError
from tangora.evaluation.tables import Row
from tangora.evaluation.tables import write_csv as write_rows
from tangora.report.data import read_scored
from tangora.report.grid import Cell, Grid, latex_text
from tangora.report.paper import TableSettings, paper_table
from tangora.report.summary import Key, Summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("paper") / "one", with_analyses=False)


def changed(folder, to, change, **recipe):
    """A copy of a run with other rows and another recipe."""
    shutil.copytree(folder, to)
    with (to / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    write_csv(to / "scores.csv", list(rows[0]), rows)
    stated = json.loads((to / "recipe.yaml").read_text())
    (to / "recipe.yaml").write_text(json.dumps(stated | recipe))
    return to


def table(*folders, **settings):
    metric = settings.get("metric")
    return paper_table([read_scored(folder, metric) for folder in folders], TableSettings(**settings))


def values(grid):
    """Names of a row -> header -> text."""
    return {names: dict(zip(grid.columns, (cell.text for cell in cells), strict=True))
            for names, cells in ((tuple(names), cells) for names, cells in grid.rows)}  # fmt: skip


def bold(grid):
    return {(tuple(names), column) for names, cells in grid.rows
            for column, cell in zip(grid.columns, cells, strict=True) if cell.bold}  # fmt: skip


def test_cells_are_the_scores_of_the_report(folder):
    grid, summary = table(folder, digits=4), Summary(read_scored(folder))
    assert (grid.names, grid.columns) == (["mode", "method"], [*TASKS, "mean"])
    key = Key("lora", "ties", "delta", "validation")
    own = summary.fused_scores(key, summary.largest)
    row = values(grid)["LoRA", "TIES"]
    assert row == {**{t: f"{own[t].score:.4f}" for t in TASKS}, "mean": f"{summary.at_largest()[key].score:.4f}"}
    assert values(grid)["–", "zero-shot"]["mean"] == f"{mean(r.score for r in summary.zero_shot().values()):.4f}"


def test_the_best_of_each_column_is_bold_without_experts_unless_asked(folder):
    found = bold(table(folder))
    assert len({column for _, column in found}) == len(TASKS) + 1
    assert all(names[1] not in ("zero-shot", "experts") for names, _ in found)
    assert all(names[1] == "experts" for names, column in bold(table(folder, bold="all")))
    assert not bold(table(folder, bold="none"))


def test_ties_as_shown_are_both_bold(folder):
    grid = table(folder, digits=0, value="kept", modes=["lora"])
    tied = [cells[-1] for names, cells in grid.rows if names[-1] not in ("zero-shot", "experts")]
    assert {cell.text for cell in tied} == {"1"}
    assert all(cell.bold for cell in tied)


def test_a_fusion_that_is_alone_in_its_column_is_not_bold(folder):
    grid = table(folder, rows="mode", columns="method", methods=["ties"], modes=["lora"])
    assert not bold(grid)
    assert bold(table(folder, rows="mode", columns="method", methods=["ties"]))


def test_kept_has_no_row_for_zero_shot(folder):
    assert all(names[-1] != "zero-shot" for names, _ in table(folder, value="kept").rows)
    by_mode = table(folder, rows="mode", columns="method", value="kept")
    assert all(any(cell.text for cell in cells) for _, cells in by_mode.rows)
    assert "zero-shot" not in by_mode.columns


def test_less_is_better_of_perplexities(folder, tmp_path):
    worse = changed(folder, tmp_path / "p", lambda row: row | {"metric": "perplexity"})
    grid = table(worse, modes=["lora"])
    best = min(float(v["sst2"]) for k, v in values(grid).items() if k[-1] not in ("zero-shot", "experts"))
    assert [values(grid)[names][column] for names, column in bold(grid) if column == "sst2"] == [f"{best:.3f}"]
    assert "less is better of perplexity" in grid.notes


def test_by_number_of_tasks_means_are_those_of_the_report(folder):
    summary = Summary(read_scored(folder))
    for value in ("score", "kept"):
        grid = table(folder, columns="n_tasks", value=value, modes=["full"])
        by_size = summary.by_size(Key("full", "ties", "delta", "validation"))
        shown = {f"{n} tasks": f"{getattr(m, value):.3f}" for n, m in by_size.items()}
        assert values(grid)[("TIES",)] == shown
    assert values(table(folder, n_tasks=2, modes=["full"]))[("TIES",)]["mean"] == f"{by_size[2].score:.3f}"


def test_rows_and_columns_can_be_exchanged(folder):
    one, other = table(folder, modes=["lora"]), table(folder, rows="task", columns="method", modes=["lora"])
    turned = {(column,): {names[0]: row[column] for names, row in values(one).items()} for column in one.columns}
    assert values(other) == turned
    assert {(c, n[0]) for n, c in bold(one)} == {(n[0], c) for n, c in bold(other)}


def test_different_metrics_are_named_and_their_mean_is_marked(folder, tmp_path):
    def with_f1(row):
        return row | ({"metric": "macro_f1"} if row["task"] == "sst2" else {})

    grid = table(changed(folder, tmp_path / "f", with_f1))
    assert grid.columns[:2] == ["sst2 (macro_f1)", "trec6 (accuracy)"]
    assert grid.columns[-1] == "mean (mixed metrics)"
    assert "the mean is over different metrics: macro_f1, accuracy" in grid.notes

    def with_error(row):
        return row | ({"metric": "perplexity"} if row["task"] == "sst2" else {})

    grid = table(changed(folder, tmp_path / "e", with_error))
    assert {row["mean (mixed metrics)"] for row in values(grid).values()} == {""}
    assert "there is no mean score: the metrics have no common scale" in grid.notes


def test_one_metric_of_several(folder, tmp_path):
    run = changed(folder, tmp_path / "m", lambda row: row)
    with (run / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    more = [row | {"metric": "macro_f1", "score": "0.25"} for row in rows if row["task"] in ("sst2", "snips")]
    write_csv(run / "scores.csv", list(rows[0]), [*rows, *more])
    assert values(table(run)) == values(table(folder))
    grid = table(run, metric="macro_f1", modes=["lora"])
    assert values(grid)[("TIES",)] == {"sst2": "0.250", "snips": "0.250", "mean": ""}, "the subset's mean is not known"


def test_seeds_are_averaged_with_their_deviation(folder, tmp_path):
    def plus(amount):
        return lambda row: row | {"score": f"{float(row['score']) + amount:.6f}"}

    runs = [folder, *(changed(folder, tmp_path / f"s{n}", plus(0.01 * n), seed=n, name=f"n{n}") for n in (1, 2))]
    grid = table(*runs, over="seed", modes=["lora"], digits=4)
    single = [values(table(run, modes=["lora"], digits=6))[("TIES",)]["snips"] for run in runs]
    cell = dict(zip(grid.columns, next(cells for names, cells in grid.rows if names == ["TIES"]), strict=True))["snips"]
    expected = [float(text) for text in single]
    assert (cell.text, cell.deviation) == (f"{mean(expected):.4f}", f"{stdev(expected):.4f}")
    assert re.search(r"0\.\d{4} ± 0\.0100", grid.markdown())
    assert r"$\pm$" in grid.latex()
    assert next(csv.reader(io.StringIO(grid.csv())))[:3] == ["method", "sst2", "sst2 sd"]
    apart = table(*runs, modes=["lora"])
    assert apart.names == ["run", "method"]
    assert len(apart.rows) == 3 * len(grid.rows)
    assert len(apart.ruled) == 2


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(folder, tmp_path):
    other = changed(folder, tmp_path / "o", lambda row: row, seed=1, lora={"r": 4})
    with pytest.raises(ArgumentError, match=r"more than the seed.*lora"):
        table(folder, other, over="seed")
    with pytest.raises(ArgumentError, match="same seed"):
        table(folder, folder, over="seed")
    with pytest.raises(ArgumentError, match="two seeds"):
        table(folder, over="seed")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": "modes"}, "--rows"),
        ({"rows": "task"}, "same"),
        ({"value": "loss"}, "--value"),
        ({"n_tasks": 4}, "fusions of 2, 3, 7"),
        ({"modes": ["lorra"]}, "lora"),
        ({"methods": ["tie"]}, "ties"),
        ({"split": "validation"}, "no scores"),
        ({"metric": "bleu"}, "no scores"),
        ({"digits": 11}, "0 to 10"),
    ],
)
def test_what_is_not_there_is_refused(folder, settings, said):
    with pytest.raises(ArgumentError, match=said):
        table(folder, **settings)


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"no scores.*scores\.csv"):
        table(tmp_path)


def test_kept_leaves_out_and_says_what_has_no_share(folder, tmp_path):
    def weak(row):
        bad = row["method"] == "expert" and (row["mode"], row["task"], row["subset"]) == ("lora", "sst2", "sst2")
        return row | ({"score": "0.1"} if bad else {})

    grid = table(changed(folder, tmp_path / "w", weak), value="kept", modes=["lora"])
    assert {row["sst2"] for row in values(grid).values()} == {""}
    row = values(grid)[("TIES",)]
    assert float(row["mean"]) == pytest.approx(mean(float(row[t]) for t in TASKS[1:]), abs=1e-3)
    assert any("LoRA expert of sst2 is worse than zero-shot (0.100 against 0.620)" in note for note in grid.notes)


HOSTILE = r"a_b & 5% #1 {x} \y ~^ | `c` *d*"


def test_latex_is_well_formed_and_escaped():
    """A LaTeX that compiles: every special character of a name is escaped, and every line has as many cells."""
    rows = [([HOSTILE], [Cell("1", bold=True), Cell("2", False, "3")])] * 2
    grid = Grid([HOSTILE], ["x", "y_z"], rows, ["a note\n%"], frozenset({1}))
    lines = grid.latex().splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 3
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 2
    start, end = lines.index(r"\begin{tabular}{lrr}"), lines.index(r"\end{tabular}")
    assert all(line.startswith("% ") for line in lines[:start])
    rules = [line for line in lines[start:end] if line.startswith("\\") and line.endswith("rule")]
    assert rules == [r"\toprule", r"\midrule", r"\midrule", r"\bottomrule"]
    text = latex_text(HOSTILE)
    for command in (
        r"\textbackslash{}",
        r"\textasciitilde{}",
        r"\textasciicircum{}",
        r"\textasciigrave{}",
        r"\textbar{}",
    ):
        assert command in text
        text = text.replace(command, "")
    assert not re.search(r"(?<!\\)[&%#_{}$~^`|]", text), text
    assert r"\textbf{1}" in body[1]
    assert r"2 $\pm$ 3" in body[1]


def test_markdown_is_aligned_and_takes_names_literally():
    grid = Grid(["name"], ["x"], [([HOSTILE], [Cell("1", bold=True)]), (["b"], [Cell("")])], ["a note"])
    lines = grid.markdown().splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines[:4])
    assert "**1**" in lines[2]
    assert lines[3].split("|")[2].strip() == "–"
    assert lines[-1] == "- a note"
    assert list(csv.reader(io.StringIO(grid.csv()))) == [["name", "x"], [HOSTILE, "1"], ["b", ""]]
    with pytest.raises(ArgumentError, match="md"):
        grid.as_text("markdow")


def made_up(folder, *, tasks="ab", fusions=(("ties", 0.6), ("average", 0.5)), metric="accuracy", **recipe):
    """A run of a few tasks and fusions; a task's experts and zero-shot have scores of their own."""
    subset = "+".join(tasks)
    cells = [("-", "zero_shot", "", "", "none", task, 0.2) for task in tasks]
    cells += [("lora", "expert", "", task, "none", task, 0.9) for task in tasks]
    cells += [("lora", name, "delta", subset, "validation", task, score) for name, score in fusions for task in tasks]
    table = [
        Row(
            *(mode, method, space, inside, inside.count("+") + 1, method != "zero_shot", selection, "", task),
            *("test", metric, score, None if method == "zero_shot" else score / 0.9, None, None, None),
        )
        for mode, method, space, inside, selection, task, score in cells
    ]
    folder.mkdir()
    write_rows(folder / "scores.csv", table)
    (folder / "recipe.yaml").write_text(json.dumps({"name": "made-up", "seed": 0, "modes": {"lora": {}}} | recipe))
    return folder


def test_zero_shot_and_experts_do_not_share_a_cell(tmp_path):
    alone = made_up(tmp_path / "alone", fusions=())
    for settings in ({"rows": "run"}, {"rows": "task", "columns": "n_tasks"}):
        shown = {cell.text for _, cells in table(alone, **settings).rows for cell in cells}
        assert shown == {"0.200", "0.900"}, "0.55 is the mean of both"


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
@pytest.mark.parametrize("first", [True, False])
def test_a_score_that_is_no_number_takes_no_bold_from_others(tmp_path, metric, first):
    fusions = [("ties", 0.6), ("average", 0.5)]
    fusions.insert(0 if first else 2, ("dare", math.nan))
    best = "TIES" if metric == "accuracy" else "average"
    grid = table(made_up(tmp_path / "nan", fusions=fusions, metric=metric))
    assert bold(grid) == {((best,), column) for column in ("a", "b", "mean")}
    grid = table(made_up(tmp_path / "all", fusions=[("ties", math.nan), ("dare", math.nan)], metric=metric))
    assert not bold(grid)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_no_numbers_have_no_deviation(tmp_path, score):
    runs = [made_up(tmp_path / f"s{seed}", fusions=[("ties", x)], seed=seed) for seed, x in enumerate((0.5, score))]
    row = next(cells for names, cells in table(*runs, over="seed").rows if names == ["TIES"])
    assert [(cell.text, cell.deviation) for cell in row] == [(str(score), "nan")] * 3


def test_runs_of_other_numbers_of_tasks_are_named_and_their_means_do_not_compete(tmp_path):
    two, three = made_up(tmp_path / "two"), made_up(tmp_path / "three", tasks="abc")
    grid = table(two, three)
    assert grid.names == ["run", "tasks fused", "method"]
    assert {tuple(names[:2]) for names, _ in grid.rows} == {("two", "2"), ("three", "3")}
    assert "tasks fused" not in grid.notes[0]
    assert any("different tasks" in note for note in grid.notes)
    other = made_up(tmp_path / "other", tasks="cd", fusions=[("ties", 0.4), ("average", 0.3)])
    grid = table(two, other)
    assert {(names[0], names[-1]) for names, column in bold(grid) if column == "mean"} == {
        ("two", "TIES"),
        ("other", "TIES"),
    }
    assert not any("subsets" in note for note in grid.notes)
    again = made_up(tmp_path / "again", tasks="ba", fusions=[("ties", 0.4), ("average", 0.3)])
    grid = table(two, again)  # the same tasks in another order
    assert {names[0] for names, _ in bold(grid)} == {"two"}
    assert not any("different tasks" in note for note in grid.notes)


def test_an_expert_worse_by_less_than_the_digits_of_the_file_is_left_out(tmp_path):
    """The run compared all digits, and noted it: the mean of what is kept is over the other task."""
    run = made_up(tmp_path / "close")

    def close(row):
        if row["task"] != "a":
            return row
        note = (
            {} if row["method"] == "zero_shot" else {"note": "the lora expert of a is worse than zero-shot (0.2, 0.2)"}
        )
        score = {"score": "0.2"} if row["method"] == "expert" else {}
        return row | score | {"normalized": ""} | note

    grid = table(changed(run, tmp_path / "changed", close), value="kept")
    assert values(grid)[("TIES",)] == {"a": "", "b": "0.667", "mean": "0.667"}
    assert any("LoRA expert of a is worse than zero-shot" in note for note in grid.notes)


def test_names_and_numbers_that_latex_would_read_otherwise():
    rows = [(["[1] a--b"], [Cell("-0.5", bold=True)]), (['*x\n\n"y"'], [Cell("-inf")]), (["z"], [Cell("0.1")])]
    lines = Grid(["run"], ["x"], rows).latex().splitlines()
    assert r"{}[1] a-{}-b & \textbf{$-$0.5} \\" in lines  # else [1] is a length that \\ adds, and -- a dash
    assert (
        r"{}*x {\char34}y{\char34} & $-$inf \\" in lines
    )  # \textquotedbl needs the encoding T1; an empty line ends a cell
    assert "_a_ b_c" not in Grid(["run"], ["x"], [(["_a_ b_c ~d~ &amp;"], [Cell("1")])]).markdown()
    assert r"\_a\_ b_c \~d\~ \&amp;" in Grid(["run"], ["x"], [(["_a_ b_c ~d~ &amp;"], [Cell("1")])]).markdown()
