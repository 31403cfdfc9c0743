"""Routers that learn as entries of a recipe: a row for every subset, of modes whose adapters they can take."""

from __future__ import annotations

import csv

import pytest

import tangora
from tangora.config.recipe import Recipe
from tangora.errors import FusionError
from tangora.runs.checks import check_methods
from tangora.runs.context import Context
from tangora.runs.runner import missing
from tangora.runs.runner import run as run_recipe
from tangora.runs.stages.cells import cells
from tangora.support.validation import validate
from tiny_run import recipe_for

QUICK = {"steps": 2, "rows": 6, "batch_size": 3, "learning_rate": 0.01}
WEMOE = {"method": "wemoe", "route": QUICK, "sizes": [2]}
DYADIC = {"method": "dyadic-experts", "route": {**QUICK, "split": "validation"}, "sizes": [2]}
ORACLE = {"method": "e-wemoe", "route": {**QUICK, "split": "oracle"}, "sizes": [2], "name": "seen"}


def recipe_of(model, data, *methods, modes):
    raw = recipe_for(model, data)
    raw["tasks"], raw["modes"] = raw["tasks"][:2], modes
    raw["lora"] = {"r": 2, "target_modules": ["query", "dense"]}
    raw["fusion"] = {"subsets": {"sizes": [2]}, "methods": [{"method": "average"}, *methods]}
    return validate(Recipe, raw, "test")


MODES = {"full": {"train": "full", "training": {"learning_rate": 1e-4}}, "l-lora": {"train": "l-lora"}}


@pytest.fixture(scope="module")
def done(tiny_bert, text_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "run"
    run_recipe(recipe_of(tiny_bert, text_data, WEMOE, DYADIC, ORACLE, modes=MODES), out)
    return out


def test_every_mode_that_can_be_routed_has_a_row(done):
    with (done / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["subset"] == "plain+good"]
    found = {(row["method"], row["mode"], row["selection"]) for row in rows if row["method"] != "average"}
    assert found == {
        ("wemoe", "full", "given"),
        ("wemoe", "l-lora", "given"),
        ("dyadic-experts", "l-lora", "given"),
        ("seen", "full", "oracle"),
        ("seen", "l-lora", "oracle"),
    }
    assert missing(Context.open(done)) == []


def test_the_adapters_say_what_they_learned_from(done):
    made = tangora.load(done / "fused" / "full" / "wemoe")
    assert made.metadata.fused.selection["rows"] == {"plain": 6, "good": 6}
    dyadic = tangora.load(done / "fused" / "l-lora" / "dyadic-experts")
    assert (dyadic.metadata.train, dyadic.metadata.fused.selection["split"]) == ("dyadic", "validation")


def test_other_modes_are_refused_by_name_and_skipped_else(tiny_bert, text_data):
    every = {**MODES, "lora": {}, "tangent": {"train": "tangent"}}
    recipe = recipe_of(tiny_bert, text_data, WEMOE, DYADIC, modes=every)
    chosen = {(cell.entry.method, cell.mode) for cell in cells(recipe) if cell.entry.route}
    assert chosen == {("wemoe", "full"), ("wemoe", "l-lora"), ("wemoe", "lora"), ("dyadic-experts", "l-lora")}
    with pytest.raises(FusionError, match=r"train: lora cannot be routed.*Give modes of l-lora"):
        check_methods(recipe_of(tiny_bert, text_data, {**DYADIC, "modes": ["lora"]}, modes=every))
    with pytest.raises(FusionError, match=r"train: tangent cannot be routed.*or full"):
        check_methods(recipe_of(tiny_bert, text_data, {**WEMOE, "modes": ["tangent"]}, modes=every))


def test_experts_of_one_a_are_refused_before_training_if_no_input_could_decide(tiny_bert, text_data):
    smile = {"method": "smile", "modes": ["l-lora"]}
    with pytest.raises(FusionError, match=r"l-lora share A of rank 2, and smile compares 4 directions"):
        check_methods(recipe_of(tiny_bert, text_data, smile, modes=MODES))
    check_methods(recipe_of(tiny_bert, text_data, {**smile, "route": {"gate_rank": 1}}, modes=MODES))
    check_methods(recipe_of(tiny_bert, text_data, {**smile, "route": {"top_k": 2}}, modes=MODES))
    arrow = {"method": "arrow", "route": {"top_k": 1}, "modes": ["l-lora"]}
    check_methods(recipe_of(tiny_bert, text_data, arrow, modes=MODES))
