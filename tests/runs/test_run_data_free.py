"""Fusion rules without data in a recipe: steps before methods, the space core, a grid; adapters name them."""

from __future__ import annotations

import pytest

from tangora.adapters.adapter import load
from tangora.config.recipe import Recipe
from tangora.errors import PluginError
from tangora.runs import runner
from tangora.runs.checks import check_methods
from tangora.support.validation import validate
from tiny_run import recipe_for

ENTRIES = [
    {"method": "iso_c", "spaces": ["core", "delta"]},
    {"method": "pico+tsv_m", "spaces": ["core"]},
    {"method": "ctm+ties_per_tensor", "parameters": {"shared_rank": [1, 2], "density": 0.5}},
    {"method": "mean_norm", "weights": [0.5, 1.0]},
]


def recipe_of(model, data, entries):
    raw = recipe_for(model, data)
    raw["tasks"], raw["modes"] = raw["tasks"][:2], {"lora": {}}
    raw["training"] |= {"steps": 2}
    raw["fusion"] = {"subsets": {"sizes": [2]}, "methods": entries}
    return validate(Recipe, raw, "test")


def test_a_recipe_runs_them(tiny_bert, text_data, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "perform", lambda report, context, listener: None)  # figures take most of the time
    out = runner.run(recipe_of(tiny_bert, text_data, ENTRIES), tmp_path / "run")
    fused = [load(path.parent) for path in out.rglob("adapter_config.json")]
    about = [adapter.metadata.fused for adapter in fused if adapter.metadata.fused is not None]
    expected = {(entry["method"], space) for entry in ENTRIES for space in entry.get("spaces", ["delta"])}
    assert {(one.method, one.space) for one in about} == expected
    rank = next(one.parameters["shared_rank"] for one in about if one.method.startswith("ctm"))
    (compressed,) = [a for a in fused if a.metadata.fused and a.metadata.fused.method.startswith("ctm")]
    assert all(update.factors().rank <= rank for update in compressed.updates.values())


def test_a_combination_that_does_not_fit_is_refused_before_training(tiny_bert, text_data):
    recipe = recipe_of(tiny_bert, text_data, [{"method": "pico+ties"}])
    with pytest.raises(PluginError, match=r"pico works tensor by tensor.*Use pico\+ties_per_tensor"):
        check_methods(recipe)
