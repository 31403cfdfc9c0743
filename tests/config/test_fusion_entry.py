"""Entries of ``fusion.methods`` that search for coefficients: what they may say, and where they make sense."""

from __future__ import annotations

import pytest

from tangora.config.recipe import FusionEntry, load_recipe
from tangora.errors import FusionError, RecipeError
from tangora.runs.runner import check_methods
from tangora.support.seams import SEARCHES

HEAD = """
name: r
base: {family: FAMILY, model: m}
tasks:
  - {name: a, source: {builtin: x}}
  - {name: b, source: {builtin: y}}
modes: {lora: {}, full: {train: full}}
fusion:
  methods:
    - {method: task_arithmetic}
    - ENTRY
"""


def recipe(tmp_path, entry, family="text-zero-shot"):
    path = tmp_path / "r.yaml"
    path.write_text(HEAD.replace("ENTRY", entry).replace("FAMILY", family))
    return load_recipe(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{method: ties, labels: 8}", "labels is not a setting of a grid"),
        ("{method: ties, search: lorahub, per: site}", "per is not a setting of search lorahub"),
        ("{method: task_arithmetic, search: learned, budget: 5}", "budget is not a setting of search learned"),
        ("{method: task_arithmetic, search: convex, steps: 5}", "steps is not a setting of search convex"),
        ("{method: task_arithmetic, search: learned, l2: auto}", "l2: auto is only for search convex"),
        (
            "{method: task_arithmetic, search: learned, l2: -1.0}",
            r"greater than or equal to 0, got -1.0 at fusion\.methods\.1\.search\.l2",
        ),
        ("{method: task_arithmetic, search: learned, weights: 0.3}", "a search finds the weights"),
        ("{method: task_arithmetic, search: learned, spaces: [factors]}", r"needs spaces: \[delta\]"),
        (
            "{method: task_arithmetic, search: convex}",
            "convex needs logits .* of lora, full: use modes with train: tangent.* such as learned, minimax",
        ),
        ("{method: task_arithmetic, search: learnt}", "'learned'"),
    ],
)
def test_what_cannot_be(tmp_path, entry, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{method: ties, search: {name: lorahub, per: site}}", "per is not a setting of search lorahub"),
        ("{method: ties, search: {name: lorahub, bugdet: 3}}", "unknown key 'bugdet'. Did you mean 'budget'"),
        ("{method: ties, search: lorahub, bugdet: 3}", "unknown key 'bugdet'. Did you mean 'budget'"),
        ("{method: ties, search: lorahub, budget: 0}", r"greater than or equal to 1, got 0 at .*1\.search\.budget"),
        ("{method: ties, search: {name: lorahub}, budget: 5, penalty: true}", r"a number, not true or false"),
        ("{method: ties, search: {budget: 3}}", "a search needs its name"),
        ("{method: ties, search: {name: lorahbu}}", "no such search, got 'lorahbu': did you mean 'lorahub'"),
        ("{method: ties, search: [lorahub]}", r"at fusion\.methods\.1\.search"),
        ("{method: ties, search: lorahub, name: 'a b'}", r"at fusion\.methods\.1\.name"),
    ],
)
def test_settings_in_a_mapping_are_refused_as_those_beside_it(tmp_path, entry, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, entry)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("{method: ties, search: lorahub, budget: 5}", "{method: ties, search: {name: lorahub, budget: 5}}"),
        (
            "{method: ties_sum, search: adamerging, per: site, labels: 8, rows_per_step: 4}",
            "{method: ties_sum, search: {name: adamerging, per: site, labels: 8}, rows_per_step: 4}",
        ),
    ],
)
def test_a_name_with_keys_beside_it_is_short_for_a_mapping(tmp_path, short, long):
    assert recipe(tmp_path, short).fusion.methods == recipe(tmp_path, long).fusion.methods


OLD = """per: task, labels: null, l2: null, l1: 0.0, nonnegative: null, bound: null, steps: null, learning_rate: null,
      rows_per_step: 16, budget: 40, penalty: 0.05, name: null, spaces: [delta], modes: null, weights: null,
      parameters: {}, sizes: null"""


@pytest.mark.parametrize("search", ["lorahub", "learned", "adamerging", "minimax", "null"])
def test_the_recipe_of_an_older_run_with_every_default_written_out_means_what_it_meant(tmp_path, search):
    old = recipe(tmp_path, f"{{method: ties_sum, search: {search}, {OLD}}}")
    assert old.fusion.methods[1] == recipe(tmp_path, f"{{method: ties_sum, search: {search}}}").fusion.methods[1]


def test_settings_are_frozen_values_and_keep_what_a_subclass_has(tmp_path):
    entry = recipe(tmp_path, "{method: ties, search: lorahub, budget: 5}").fusion.methods[1]
    assert entry.model_dump(mode="json")["search"] == {"name": "lorahub", "budget": 5, "bound": 1.5, "penalty": 0.05}
    assert FusionEntry.model_validate(entry.model_dump()) == entry == FusionEntry(method="ties", search=entry.search)
    with pytest.raises(ValueError, match="frozen"):
        entry.search.budget = 3


def test_a_search_that_needs_classes_is_refused_for_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(SEARCHES.get("adamerging"), "classes", True)
    with pytest.raises(RecipeError, match="adamerging needs classes"):
        recipe(tmp_path, "{method: task_arithmetic, search: adamerging}", family="text-to-text")


@pytest.mark.parametrize("method", ["average", "iso_c", "svd"])
def test_a_method_that_is_no_sum_over_the_tasks_is_refused(tmp_path, method):
    given = recipe(tmp_path, f"{{method: {method}, search: learned}}")
    with pytest.raises(FusionError, match=f"linear in its weights, got '{method}' at fusion.methods.learned.*ties_sum"):
        check_methods(given)


def test_labels_defaults_and_a_round_trip(tmp_path):
    entry = "{method: ties_sum, search: adamerging, per: site, labels: 8}"
    given = recipe(tmp_path, entry)
    check_methods(given)
    one = given.fusion.methods[1]
    assert (one.label, one.search.pull) == ("adamerging-site", 0.01)
    assert recipe(tmp_path, "{method: task_arithmetic, search: learned}").fusion.methods[1].search.pull == 0.0
    path = tmp_path / "resolved.yaml"
    path.write_text(given.to_yaml())
    assert load_recipe(path) == given
