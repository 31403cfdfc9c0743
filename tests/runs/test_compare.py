"""Comparisons of runs, of which every number is worked out again from their predictions."""

from __future__ import annotations

import csv
import io
import json

import pytest
from paired_run import answered, make_paired_run, task
from typer.testing import CliRunner

from tangora.cli import app
from tangora.errors import ArgumentError, FileError
from tangora.evaluation.significance import Pair, holm, paired_test
from tangora.runs.compared import compare_runs
from tangora.runs.comparison import CompareSettings
from tangora.runs.stages.scored_rows import FILE, read_scored_rows, write_scored_rows
from tangora.tasks.contract import AnswerForm
from tangora.tasks.values import Split, Task


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return make_paired_run(folder / "one"), make_paired_run(folder / "two", better=0.1, seed=5)


def compare(first, second=None, **settings):
    return compare_runs(first, second, CompareSettings(**settings))


def test_two_runs(runs):
    made = compare(*runs, permutations=500)
    assert [(row.mode, row.method, row.n_tasks) for row in made.rows] == [("lora", "average", 2), ("lora", "ties", 2)]
    assert made.labels == ("one", "two")
    tasks = [task("mail"), task("intent")]
    pairs = []
    for one in tasks:
        answers = [answered(one, share, [n, 4, len(one.name)]).values for n, share in ((0, 0.8), (5, 0.9))]
        pairs.append(Pair(one.name, "accuracy", one.splits["test"].targets, *answers, 0.5))
    expected = paired_test(pairs, resamples=100, permutations=500, seed=0)
    assert made.rows[1].test == expected
    assert [row.holm for row in made.rows] == holm([row.test.p for row in made.rows])
    assert made.rows[1].tasks == ["mail", "intent"]
    back = compare(runs[1], runs[0], permutations=500)
    assert back.rows[0].test.difference == pytest.approx(-made.rows[0].test.difference)


def test_a_baseline_within_a_run(runs):
    (row,) = compare(runs[0], baseline="average").rows
    assert (row.method, row.test.difference > 0) == ("ties", True)
    assert row.holm == row.test.p
    with pytest.raises(ArgumentError, match=r"no such method.*average, ties"):
        compare(runs[0], baseline="tsv_m")
    with pytest.raises(ArgumentError, match="two things"):
        compare(runs[0])
    with pytest.raises(ArgumentError, match="two things"):
        compare(*runs, baseline="average")


def test_a_run_compared_with_itself_differs_in_nothing(runs):
    for row in compare(runs[0], runs[0]).rows:
        assert (row.test.difference, row.test.low, row.test.high, row.test.p, row.holm) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_only_some(runs):
    assert [row.method for row in compare(*runs, methods=["ties"]).rows] == ["ties"]
    alone = compare(*runs, tasks=["mail"]).rows[0]
    assert (alone.tasks, alone.n_tasks) == (["mail"], 2)
    for settings in ({"methods": ["x"]}, {"modes": ["full"]}, {"n_tasks": 3}):
        with pytest.raises(ArgumentError, match="no fusion to compare"):
            compare(*runs, **settings)
    with pytest.raises(ArgumentError, match=r"no such task.*mail"):
        compare(*runs, tasks=["mial"])


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([task("mail")], "task intent is only in the first"),
        ([task("mail"), task("intent"), task("more tasks")], "task more tasks is only in the second"),
        ([task("mail", "macro_f1"), task("intent")], "metric of mail: accuracy and macro_f1"),
        ([task("mail"), task("intent", count=31)], "test rows of intent: 30 and 31"),
        ([task("mail", salt=1), task("intent")], "test rows of mail: digests"),
    ],
    ids=["missing", "more", "metric", "count", "rows"],
)
def test_runs_on_other_rows_are_refused_with_what_differs(runs, tmp_path, tasks, said):
    other = make_paired_run(tmp_path / "other", tasks)
    with pytest.raises(ArgumentError, match=said):
        compare(runs[0], other)


def test_tasks_that_are_the_same_can_be_compared(runs, tmp_path):
    other = make_paired_run(tmp_path / "other", [task("mail"), task("intent", salt=1)])
    assert compare(runs[0], other, tasks=["mail"]).rows[0].tasks == ["mail"]


def test_means_without_a_common_scale_are_refused(tmp_path):
    mixed = [task("mail"), task("intent", "mse")]
    with pytest.raises(ArgumentError, match=r"no common scale.*accuracy, mse"):
        compare(make_paired_run(tmp_path / "m", mixed), baseline="average")
    less = [task("mail", "mse"), task("intent", "mse")]
    assert "less is better" in compare(make_paired_run(tmp_path / "l", less), baseline="average").grid().notes


def test_a_run_without_recorded_rows_is_refused(runs, tmp_path):
    old = make_paired_run(tmp_path / "old")
    (old / FILE).unlink()
    with pytest.raises(FileError, match=r"not recorded.*Run its recipe again"):
        compare(runs[0], old)
    (old / FILE).write_text('{"tasks": {}}')
    with pytest.raises(FileError, match="no rows in the file"):
        compare(runs[0], old)
    with pytest.raises(FileError, match="not a run"):
        compare(runs[0], tmp_path)


def test_a_run_without_its_predictions_is_refused_with_what_to_do(runs, tmp_path):
    other = make_paired_run(tmp_path / "other")
    (other / "cache" / "outcomes" / "key.json").unlink()
    with pytest.raises(FileError, match=r"predictions are missing.*key\.json.*Run its recipe again"):
        compare(runs[0], other)


def test_given_coefficients_are_compared_with_chosen_ones(runs, tmp_path):
    """A method is one, however a run came to its coefficients; what was chosen on test rows stays out."""
    other = make_paired_run(tmp_path / "other", better=0.1, seed=5)
    path = other / "cache" / "outcomes" / "key.json"
    raw = json.loads(path.read_text())
    fused = {one["method"]: one for one in raw["chosen"] if one["method"] in ("average", "ties")}
    fused["average"]["selection"], fused["ties"]["selection"] = "given", "oracle"
    path.write_text(json.dumps(raw))
    (row,) = compare(runs[0], other).rows
    assert (row.method, row.selection) == ("average", "given")
    assert row.test == compare(*runs, methods=["average"]).rows[0].test
    with pytest.raises(ArgumentError, match="the second lora average of 2"):
        compare(runs[0], other, methods=["ties"])


def test_references_of_texts_are_tuples_again(tmp_path):
    split = Split({}, [("a", "b"), "c"])
    of = Task("t", "none", "exact_match", [], {"test": split}, form=AnswerForm("text", None))
    write_scored_rows(tmp_path, [of], {}, 0, 10)
    assert read_scored_rows(tmp_path).tasks["t"].targets == [("a", "b"), "c"]


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_commands(runs, tmp_path):
    done = invoke("compare", *runs, "--permutations", 50, "--format", "csv")
    assert done.exit_code == 0
    (head, *rows) = csv.reader(io.StringIO(done.stdout))
    assert head == ["mode", "method", "tasks fused", "one", "two", "difference", "low", "high", "p", "p (Holm)"]
    assert len(rows) == 2
    read = json.loads(invoke("compare", *runs, "--permutations", 50, "--format", "json").stdout)
    assert read == json.loads(invoke("compare", *runs, "--permutations", 50, "--json").stdout)
    assert f"{read['rows'][0]['test']['p']:.3g}" == rows[0][8]
    assert f"{read['rows'][0]['holm']:.3g}" == rows[0][9]
    text = invoke("compare", *runs, "--permutations", 50).stdout
    assert "50 random exchanges (seed 0)" in text
    done = invoke("table", *runs, "--columns", "run", "--out", tmp_path / "t.md")
    assert done.exit_code == 0
    assert (tmp_path / "t.md").read_text().startswith("| method")
    refused = invoke("table", *runs, "--columns", "run", "--out", tmp_path / "t.md")
    assert refused.exit_code != 0


def test_the_scores_of_a_real_run_are_those_of_its_table(short_run):
    with (short_run / "scores.csv").open(newline="", encoding="utf-8") as file:
        means = {
            (row["mode"], row["method"]): float(row["score"]) for row in csv.DictReader(file) if row["task"] == "mean"
        }
    rows = compare(short_run, short_run).rows
    assert rows
    for row in rows:
        assert row.test.second == pytest.approx(means[row.mode, row.method], abs=1e-6)
        assert row.test.difference == 0
