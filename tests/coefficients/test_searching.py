"""`tangora.search`: pairing, the cut of rows, the default and the result."""

from __future__ import annotations

import pytest
import torch

import tangora
from tangora.coefficients.own_rows import CHOOSING, SCORING, cut_rows
from tangora.coefficients.pairing import members_of
from tangora.coefficients.result import BASE, FUSED, ONE
from tangora.errors import ArgumentError, DataError
from tangora.tasks.values import Split, Task


@pytest.fixture(scope="module")
def experts(text_base, text_task):
    config = tangora.FinetuneConfig(training={"steps": 4, "batch_size": 8, "learning_rate": 0.02}, lora={"r": 2})
    one = tangora.finetune(text_base, text_task, config)
    other = tangora.finetune(text_base, text_task, config.model_copy(update={"seed": 1}))
    return [one, other]


def test_the_result_has_coefficients_adapter_and_table(text_base, text_task, experts):
    found = tangora.search(
        {"colors": experts[0], "more": experts[1]}, text_base, [text_task], "learned", steps=2, labels=3
    )
    fused = tangora.fuse(experts, weights=found.weights)
    assert all(torch.allclose(fused.updates[s].dense(), u.dense(), atol=1e-6) for s, u in found.adapter.updates.items())
    assert found.table.models == [BASE, "colors", "more", ONE, FUSED]
    assert found.table.experts == {"colors": "colors"}
    score = tangora.evaluate(fused, text_base, text_task)["colors"].score
    assert found.table[FUSED]["colors"].score == score
    assert found.table[BASE]["colors"].score == tangora.evaluate(None, text_base, text_task)["colors"].score
    assert found.adapter.metadata.scores["tasks"] == {"colors": score}
    assert dict(found.rows) == {"colors": 3}
    assert found.adapter.metadata.fused.selection["reason"] == "it was asked for"
    assert repr(found).startswith("SearchResult(learned, weights ")


def test_one_lambda_is_the_best_of_its_grid_by_what_is_kept(text_base, text_task, experts):
    found = tangora.search({"colors": experts[0]}, text_base, [text_task], "grid", weights=[0.0, 0.5, 1.0], scored=None)
    scores = {}
    for weight in (0.0, 0.5, 1.0):
        fused = tangora.fuse(experts[:1], weights=weight)
        result = tangora.evaluate(fused, text_base, text_task, split="validation")["colors"]
        scores[weight] = (result.score, -result.loss)
    assert found.weights == [max(scores, key=scores.__getitem__)]
    assert found.table is None


def test_the_default_looks_for_more_than_one_lambda_only_with_enough_rows(text_base, text_task, experts):
    pair = {"colors": experts[0], "more": experts[1]}
    few = tangora.search(pair, text_base, [text_task], scored=None, weights=[0.5])
    assert few.search == "grid"
    assert few.reason == "one λ for all: a task has 5 choosing rows, fewer than 32"
    many = tangora.search(pair, text_base, [text_task], split="train", scored=None, weights=[0.0])
    assert many.search == "learned", "λ = 0 is the base"
    assert "keeps" in many.reason


def test_rows_that_choose_do_not_score(text_base, text_task, experts):
    with pytest.raises(ArgumentError, match="chosen on the rows that are scored"):
        tangora.search(experts[:1], text_base, [text_task], split="test")
    with pytest.raises(DataError, match="the split is missing"):
        tangora.search(experts[:1], text_base, [text_task], split="tset")


def test_a_parameter_has_one_value(text_base, text_task, experts):
    with pytest.raises(ArgumentError, match="a parameter has one value here"):
        tangora.search(experts, text_base, [text_task], method="ties", parameters={"density": [0.1, 0.2]})


def rows(targets, inputs):
    return Task("t", "none", "accuracy", ["x", "y"], {"train": Split({"input_ids": inputs}, targets)}, fingerprint="t")


def test_a_cut_has_every_row_once_and_keeps_equal_inputs_together():
    inputs = [torch.tensor([i % 7]) for i in range(30)]
    made, cut = cut_rows(rows([i % 2 for i in range(30)], inputs), "train", 12, seed=1)
    sides = {name: sorted(int(ids) for ids in made.splits[name].inputs["input_ids"]) for name in (CHOOSING, SCORING)}
    assert not set(sides[CHOOSING]) & set(sides[SCORING])
    assert sorted(sides[CHOOSING] + sides[SCORING]) == sorted(i % 7 for i in range(30))
    assert (cut.rows, cut.choosing + cut.scoring, cut.alike) == (30, 30, 30)
    assert cut.choosing <= 12
    again, _ = cut_rows(rows([i % 2 for i in range(30)], inputs), "train", 12, seed=1)
    other, _ = cut_rows(rows([i % 2 for i in range(30)], inputs), "train", 12, seed=2)
    assert again.fingerprint == made.fingerprint != other.fingerprint


def test_a_cut_keeps_the_proportions_of_classes():
    inputs = [torch.tensor([i]) for i in range(100)]
    made, cut = cut_rows(rows([int(i < 20) for i in range(100)], inputs), "train", None, seed=0)
    assert cut.choosing == 50
    assert sum(made.splits[CHOOSING].targets) == 10


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [(1, None, "no choosing row"), (2, None, "leave 1 to score on"), (5, 4, "4 choosing rows leave 1")],
)
def test_too_few_rows_are_refused(count, labels, message):
    with pytest.raises(DataError, match=message):
        cut_rows(rows([0] * count, [torch.tensor([i]) for i in range(count)]), "train", labels, seed=0)


def test_adapters_belong_to_the_tasks_that_they_record_or_are_in_order():
    tasks = [rows([0], [torch.tensor([0])]), Task("u", "none", "accuracy", [], {})]
    named = [(m.name, m.task and m.task.name) for m in members_of(["x/p", "x/q"], tasks, ["u", None])]
    assert named == [("u", "u"), ("q", None)]
    assert [m.name for m in members_of(["x/p", "x/q"], tasks, [None, None])] == ["t", "u"]
    assert [m.name for m in members_of(["x/p", "x/q"], tasks, ["all", "all"])] == ["t", "u"]
    assert [m.name for m in members_of(["x/t", "y/t"], tasks[1:], [None, None])] == ["x/t", "y/t"]
    with pytest.raises(ArgumentError, match="two adapters of one task"):
        members_of(["p", "q", "r"], tasks, ["u", "u", "t"])
    with pytest.raises(ArgumentError, match="no adapter to find"):
        members_of([], tasks, [])
