"""How public values show themselves: one line each, a table in notebooks."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import tangora
from tangora.api.evaluating import Scores
from tangora.api.predicting import RowAnswers
from tangora.cli.tables import score_table
from tangora.evaluation.evaluator import Result
from tangora.fusion.verification import Verification
from tangora.inspection.folders import inspect
from tangora.inspection.fusable import fusable
from tangora.support.shown import MOST, html_table, one_line
from tangora.tangent.columns import Columns
from tangora.tasks import Predictions

LONG = "a_rather_long_name_" * 20


@pytest.fixture(scope="module")
def values(workshop):
    """One of each public value that a call returns or takes, made with long names where it has any."""
    recipe = tangora.load_recipe(str(workshop / "recipe.yaml"))
    adapter = tangora.load(workshop / "adapters" / "one")
    vector = adapter.task_vector
    base = tangora.load_base(workshop / "encoder", family="text-zero-shot", max_length=16)
    files = {split: workshop / "colors" / f"{split}.parquet" for split in ("train", "test")}
    task = tangora.load_task(LONG, base, files, labels=["red", "green", "blue"])
    inspected = inspect(workshop / "adapters" / "one")
    columns = Columns("t", "test", ("a", "b"), (), torch.zeros(4, 3), torch.zeros(2, 4, 3), *[torch.zeros(4)] * 2, "f")
    merged = tangora.fuse_checkpoints(
        workshop / "models" / "base", [workshop / "models" / "m0"] * 9, workshop / "m", dry_run=True
    )
    return [
        recipe, recipe.base, recipe.tasks[0], recipe.lora, recipe.training, recipe.fusion, recipe.evaluation,
        recipe.finetune_config("tangent"), vector, next(iter(vector.values())), base, task, task.splits["test"],
        inspected, fusable([inspected]), columns, merged, tangora.methods()["ties"],
        tangora.TangentModel(base.backbone, tangora.load(workshop / "run/adapters/tangent/one")),
        Result(0.5, 1.0, [1] * 1000), Predictions(np.zeros(1000), np.zeros(1000, np.float32)),
        Verification(9, 0, 1e-7, LONG, "result", 0, None, None, None, 1.0),
        Scores({LONG: Result(0.5, 1.0, [1])}, {LONG: "accuracy"}, "test"),
        RowAnswers("t", [LONG] * 50, [LONG, "b"], torch.rand(50, 2)),
    ]  # fmt: skip


def test_a_repr_is_one_short_line(values):
    for value in values:
        text = repr(value)
        assert "\n" not in text, text
        assert len(text) <= MOST, (len(text), text)
        assert text.startswith(type(value).__name__.removeprefix("ZeroShot")), text


@pytest.mark.parametrize(("second", "mean"), [("macro_f1", True), ("exact_match", True), ("perplexity", False)])
def test_scores_without_a_common_scale_have_no_mean(second, mean):
    scores = {"a": Result(0.8124, 1.0, [1]), "b": Result(46912.3, 1.0, [1])}
    metrics = {"a": "accuracy", "b": second}
    table = score_table({"zero-shot": scores}, metrics, "test")
    shown = Scores(scores, metrics, "test")
    for text in (repr(shown), shown._repr_html_()):
        assert "0.812" in text
        assert "46,912" in text
        assert ("mean" in text) == mean
    assert [column.header for column in table.columns] == (["mean"] if mean else []) + ["a", "b"]
    assert [column.cells for column in table.columns[-2:]] == [["0.812"], ["46,912"]]


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.rows = [], 0

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_tables_of_notebooks_are_whole(values):
    shown = [value for value in values if hasattr(value, "_repr_html_")]
    assert {type(value).__name__ for value in shown} >= {
        "FinetuneConfig", "Recipe", "RowAnswers", "Scores", "TangentModel", "TaskVector", "ZeroShotBase",
        "ZeroShotTask",
    }  # fmt: skip
    for value in shown:
        page = Balanced()
        page.feed(value._repr_html_())
        assert page.open == []
        assert page.rows > 1


def test_a_table_of_a_vector_has_its_largest_sites():
    vector = tangora.TaskVector({f"site{i}": tangora.Dense(torch.full((2, 2), float(i))) for i in range(25)})
    text = vector._repr_html_()
    assert text.index("site24") < text.index("site23")
    assert "and 5 more" in text
    assert "site4<" not in text


def test_names_in_tables_are_data():
    text = html_table("<b>", ["<i>"], [["<script>alert(1)</script>"]])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_line_is_cut_and_keeps_no_breaks():
    assert one_line("Kind", "a\nb", None, "", 3) == "Kind(a b, 3)"
    assert len(one_line("Kind", "x" * 500)) == MOST
    assert one_line("Kind", "x" * 500).endswith(" …)")
