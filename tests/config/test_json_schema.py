"""The JSON Schema of recipes accepts what is accepted, and refuses what is refused."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from tangora.config.json_schema import DIALECT, recipe_schema
from tangora.config.recipe import bundled_recipes, bundled_text, load_recipe
from tangora.errors import RecipeError
from tangora.support.yaml import dump, parse


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(json.dumps(recipe_schema()))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == DIALECT
    return Draft202012Validator(schema)


MINIMAL = """
name: tiny
base: {family: causal-lm, model: somewhere}
tasks:
  - {name: a, source: {csv: {train: a.csv, test: b.csv}}}
  - {name: b, source: {hub: org/set}}
"""


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_are_valid(validator, name):
    assert [error.message for error in validator.iter_errors(parse(bundled_text(name)))] == []


@pytest.mark.parametrize("name", bundled_recipes())
def test_resolved_recipes_are_valid(validator, name):
    """As a run writes them into its folder: every default filled in."""
    written = parse(load_recipe(name, ["data.root=/data"]).to_yaml())
    assert [error.message for error in validator.iter_errors(written)] == []


@pytest.mark.parametrize(
    "change",
    [
        "base: {family: text-zero-shot, model: x, pooling: cls}",
        "executor: processes",
        "executor: {name: processes, workers: 3}",
        "fusion: {methods: [{method: arrow, route: {top_k: 2}}, {method: arrow, name: b, top_k: 1}]}",
        "fusion: {methods: [{method: ties, search: {name: learned, labels: 3}}]}",
        "fusion: {methods: [{method: ties, search: learned, labels: 3}]}",
        "modes: {a: {linearize: module}, b: {train: full}, c: {train: adapter, linearize: model}}",
        "modes: {a: {lora: {r: 3}, training: {steps: 1}}}",
        "modes: {a: {train: dyadic, ups: 3, sampling: {by: uniform}}}",
    ],
)
def test_what_both_accept(validator, change, tmp_path):
    raw = {**parse(MINIMAL), **parse(change)}
    (tmp_path / "r.yaml").write_text(dump(raw))
    load_recipe(tmp_path / "r.yaml")
    assert [error.message for error in validator.iter_errors(raw)] == []


@pytest.mark.parametrize(
    "change",
    [
        "base: {family: causal-lm, model: x, pooling: cls}",
        "base: {family: causal, model: x}",
        "base: {family: causal-lm}",
        "executor: {name: processes, worker: 3}",
        "executor: {name: serial, workers: 3}",
        "executor: threads",
        "fusion: {methods: [{metod: ties}]}",
        "fusion: {methods: [{method: arrow, route: {topk: 2}}]}",
        "fusion: {methods: [{method: ties, labels: 3}]}",
        "fusion: {methods: [{method: ties, search: learned, lables: 3}]}",
        "fusion: {methods: [{method: ties, search: {name: learned, lables: 3}}]}",
        "fusion: {methods: [{method: ties, spaces: [dleta]}]}",
        "lora: {r: 0}",
        "lora: {rnk: 3}",
        "modes: {a: {lora: {rnk: 3}}}",
        "modes: {a: {train: dyadic, upps: 3}}",
        "modes: {a: {train: full, lora: {r: 3}}}",
        "modes: {a: {train: lorra}}",
        "modes: {a: {ups: 3}}",
        "seed: abc",
        "tasks: [{name: a, source: {csv: {train: a.csv, tset: b.csv}}}]",
        "tasks: [{name: a, source: {hub: x}, metric: acuracy}]",
        "tasks: [{name: a, source: {hub: x}, text_pair: b}]",
        "tasks: [{name: a}]",
        "tasks: []",
        "traning: {}",
    ],
)
def test_what_both_refuse(validator, change, tmp_path):
    raw = {**parse(MINIMAL), **parse(change)}
    (tmp_path / "r.yaml").write_text(dump(raw))
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "r.yaml")
    assert list(validator.iter_errors(raw))
