"""A recipe's fusions with ``polish``: a row of their own in every table, an adapter, a figure; done once."""

from __future__ import annotations

import csv
import json

import pytest

import tangora
from tangora.config.recipe import Recipe
from tangora.errors import RecipeError
from tangora.evaluation.evaluator import evaluate
from tangora.runs.context import Context
from tangora.runs.runner import missing
from tangora.runs.runner import run as run_recipe
from tangora.support.validation import validate
from tiny_run import recipe_for

pytestmark = pytest.mark.drawn

POLISH = {
    "rank": 3,
    "rows": 16,
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 0.02,
    "evaluate_every": 3,
    "recombined": 20,
}


def recipe_of(model, data, **changes):
    raw = recipe_for(model, data)
    raw["tasks"], raw["modes"] = raw["tasks"][:2], {"lora": {}, "tangent": {"train": "tangent"}}
    entry = {"method": "task_arithmetic", "weights": [0.3, 0.6]}
    raw["fusion"] = {
        "subsets": {"sizes": [2]},
        "methods": [entry, {**entry, "polish": {**POLISH, **changes}}],
        "selection": ["validation", "oracle"],
    }
    return validate(Recipe, raw, "test")


@pytest.fixture(scope="module")
def done(tiny_bert, text_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("polished") / "run"
    run_recipe(recipe_of(tiny_bert, text_data), out)
    return out


def scores(run, method, mode="lora"):
    with (run / "scores.csv").open() as file:
        return [r for r in csv.DictReader(file) if (r["method"], r["mode"]) == (method, mode)]


def test_it_stands_beside_the_fusion_in_the_tables(done):
    for mode in ("lora", "tangent"):
        plain, polished = scores(done, "task_arithmetic", mode), scores(done, "task_arithmetic-polished", mode)
        assert {r["selection"] for r in polished} == {"validation", "oracle"}
        assert len(plain) == len(polished)
        assert [r["coefficients"] for r in plain] == [r["coefficients"] for r in polished]
    rows = json.loads((done / "polish.json").read_text())["rows"]
    places = {(mode, selection) for mode in ("lora", "tangent") for selection in ("validation", "oracle")}
    assert {(r["mode"], r["selection"]) for r in rows} == places
    assert "seconds" not in rows[0]


def test_the_adapter_scores_what_the_table_says(done):
    context = Context.open(done)
    for mode in ("lora", "tangent"):
        adapter = tangora.load(done / "fused" / mode / "task_arithmetic-polished")
        assert adapter.metadata.polished.rows == {"plain": 16, "good": 16}
        assert adapter.metadata.train == "lora"
        results = evaluate(adapter, context.base, list(context.tasks.values()))
        table = {
            r["task"]: r
            for r in scores(done, "task_arithmetic-polished", mode)
            if (r["selection"], r["split"]) == ("validation", "test")
        }
        for task, result in results.items():
            assert float(table[task]["score"]) == pytest.approx(result.score)
            if mode == "lora":  # scored before: the start's score, from the same tables
                assert task in adapter.metadata.scores["tasks"]


def test_the_report_shows_what_was_gained(done):
    page = (done / "report.html").read_text()
    assert 'id="polish"' in page
    assert "Polish: mean test score before and after" in page
    assert "task arithmetic, polished" in page
    assert (done / "figures" / "polish.png").is_file()


def test_nothing_is_done_twice(done):
    assert missing(Context.open(done)) == []


def test_a_second_run_has_the_same_scores(done, tiny_bert, text_data, tmp_path):
    run_recipe(recipe_of(tiny_bert, text_data), tmp_path / "run")
    for name in ("scores.csv", "polish.json", "candidates.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes()


def test_settings_are_checked_before_anything_is_trained(tiny_bert, text_data):
    with pytest.raises(RecipeError, match="rank"):
        recipe_of(tiny_bert, text_data, rank=0)
    with pytest.raises(RecipeError, match="unknown key 'step'"):
        recipe_of(tiny_bert, text_data, step=3)
    with pytest.raises(RecipeError, match="a tangent student starts from the fusion"):
        recipe_of(tiny_bert, text_data, student="tangent", initial="random")


@pytest.mark.parametrize("how", [{"initial": "layers"}, {"objective": "layers"}])
def test_layers_of_tangent_experts_are_refused_before_anything_is_trained(tiny_bert, text_data, how):
    with pytest.raises(RecipeError, match="layer by layer, and experts of tangent change no layer's weights"):
        recipe_of(tiny_bert, text_data, **how)
