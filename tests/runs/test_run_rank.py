"""Entries of a recipe with a rank: each candidate is scored as it is cut, and saved so."""

from __future__ import annotations

import csv
import json

import pytest

import tangora
from tangora.config.recipe import Recipe
from tangora.errors import RecipeError
from tangora.evaluation.evaluator import evaluate
from tangora.report import explorer
from tangora.runs.context import Context
from tangora.runs.runner import run as run_recipe
from tangora.runs.stages.cells import cells
from tangora.support.validation import validate
from tiny_run import recipe_for

ENTRY = {"method": "task_arithmetic", "weights": [0.4, 0.8]}


def recipe_of(model, data, *more, modes=("lora", "tangent")):
    raw = recipe_for(model, data)
    raw["tasks"], raw["modes"] = raw["tasks"][:2], {mode: {"train": mode} for mode in modes}
    raw["fusion"] = {"subsets": {"sizes": [2]}, "methods": [ENTRY, *more], "selection": ["validation"]}
    return validate(Recipe, raw, "test")


@pytest.fixture(scope="module")
def done(tiny_bert, text_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranked") / "run"
    run_recipe(recipe_of(tiny_bert, text_data, {**ENTRY, "rank": 1}, {"method": "ties", "rank": 2}), out)
    return out


def rows_of(run, name):
    with (run / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", ["lora", "tangent"])
@pytest.mark.parametrize(("label", "rank"), [("task_arithmetic-rank1", 1), ("ties-rank2", 2)])
def test_the_saved_adapter_has_the_rank_and_the_scores_of_the_table(done, mode, label, rank):
    adapter = tangora.load(done / "fused" / mode / label)
    assert max(update.rank for update in adapter.updates.values()) <= rank
    assert adapter.metadata.fused.rank == rank
    context = Context.open(done)
    for task, result in evaluate(adapter, context.base, list(context.tasks.values())).items():
        (row,) = [
            r
            for r in rows_of(done, "scores.csv")
            if (r["mode"], r["method"], r["task"], r["split"]) == (mode, label, task, "test")
        ]
        assert float(row["score"]) == pytest.approx(result.score)


def test_candidates_are_compared_as_they_are_cut(done):
    losses = {}
    for row in rows_of(done, "candidates.csv"):
        losses.setdefault((row["mode"], row["method"], row["weights"]), []).append(float(row["loss"]))
    for mode in ("lora", "tangent"):
        for weights in ("[0.4, 0.4]", "[0.8, 0.8]"):
            whole, cut = (losses[mode, label, weights] for label in ("task_arithmetic", "task_arithmetic-rank1"))
            assert whole != cut  # two adapters of rank 2 do not fit into one direction


def test_the_explorer_has_no_preset_of_a_cut(done, tmp_path):
    text = explorer.build(done, "tangent", tmp_path / "page.html").read_text()
    assert "best single" in text
    assert "rank1" not in text


def test_modes_without_factors_leave_it_out(tiny_bert, text_data):
    recipe = recipe_of(tiny_bert, text_data, {**ENTRY, "rank": 1}, modes=("full", "lora"))
    assert {(cell.mode, cell.entry.rank) for cell in cells(recipe)} == {("full", None), ("lora", None), ("lora", 1)}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({**ENTRY, "rank": 0}, "greater than or equal to 1"),
        ({**ENTRY, "rank": 4, "polish": {"rank": 2}}, "a polish has a rank of its own"),
        ({"method": "smile", "rank": 4}, "leave out rank"),
        ({**ENTRY, "rank": "auto"}, "integer"),
    ],
)
def test_what_cannot_be_cut_is_refused(tiny_bert, text_data, entry, says):
    with pytest.raises(RecipeError, match=says):
        recipe_of(tiny_bert, text_data, entry)


def test_an_entry_of_an_earlier_recipe_reads(tiny_bert, text_data):
    recipe = recipe_of(tiny_bert, text_data)
    raw = recipe.model_dump(mode="json")
    for entry in raw["fusion"]["methods"]:
        del entry["rank"]
    assert validate(Recipe, json.loads(json.dumps(raw)), "test") == recipe
