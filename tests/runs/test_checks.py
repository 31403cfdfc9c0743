"""What is refused before anything is trained."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tangora.config.recipe import load_recipe
from tangora.errors import MissingExtraError
from tangora.runs.checks import check_methods
from tangora.support import extras

RECIPE = """
name: r
base: {family: text-to-text, model: m}
tasks:
  - {name: a, source: {builtin: x}, metrics: [exact_match, bleu]}
  - {name: b, source: {builtin: y}, metric: exact_match}
modes: {lora: {}}
fusion: {methods: [{method: average}]}
"""


def test_the_packages_of_a_metric(tmp_path, monkeypatch):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path)
    check_methods(recipe)
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "sacrebleu" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"the metric bleu needs .*'sacrebleu'.* pip install 'tangora\[lm\]'"):
        check_methods(recipe)
