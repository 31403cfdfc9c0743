"""All faults of a recipe are found at once, each with its place and what was probably meant."""

from __future__ import annotations

import pickle
import sys

import pytest

from tangora.cli.commands import main
from tangora.config.recipe import load_recipe
from tangora.config.settings import LoraSettings
from tangora.errors import RecipeError
from tangora.support.validation import Fault, faults_of, nearest, refuse, validate

RECIPE = """
name: tiny
base: {family: text-zero-shot, model: somewhere}
tasks:
  - {name: a, source: {csv: {train: a.csv, test: b.csv}}}
  - {name: b, source: {hub: org/set}}
"""
MANY = """
name: tiny
sead: 3
base: {family: causal-lm, modle: somewhere}
tasks:
  - {name: a, source: {csv: {train: a.csv, test: b.csv}}, chats: true}
  - {name: b, source: {parket: org/set}, metric: exactmatch}
lora: {rnk: 4, dropout: 1.5}
modes:
  m: {training: {step: 3, batch_size: 0}, lora: {alfa: 1}}
  n: {train: dyadic, upps: 3, block: 0}
fusion:
  methods:
    - {metod: ties}
    - {method: ties, search: convex, labls: 3, search_: 4}
    - {method: arrow, topk: 3, spaces: core}
executor: {name: processes, worker: 3}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def faults(path, *settings):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, settings)
    return [str(fault) for fault in caught.value.faults or [caught.value]]


def test_every_fault_is_listed_with_its_place(path):
    path.write_text(MANY)
    found = faults(path)
    expected = {
        "sead": "Did you mean 'seed'?",
        "base.modle": "Did you mean 'model'?",
        "tasks.0.chats": "Did you mean 'chat'?",
        "tasks.1.source.parket": "Did you mean 'parquet'?",
        "tasks.1.metric": "Did you mean 'exact_match'?",
        "lora.rnk": "Did you mean 'r'?",
        "lora.dropout": "less than 1",
        "modes.m.training.step": "Did you mean 'steps'?",
        "modes.m.training.batch_size": "greater than or equal to 1",
        "modes.m.lora.alfa": "Did you mean 'alpha'?",
        "modes.n": "train: dyadic has no key 'upps'; did you mean 'ups'?",
        "modes.n.block": "greater than or equal to 1",
        "fusion.methods.0.metod": "Did you mean 'method'?",
        "fusion.methods.1": "unknown key 'search_'",
        "fusion.methods.2": "unknown key 'topk'. Did you mean 'top_k'?",
        "fusion.methods.2.spaces": "valid list",
        "executor": "unknown setting 'worker': did you mean 'workers'?",
    }
    for place, words in expected.items():
        assert any(f" at {place}" in f"{line} " and words in line for line in found), (place, words, found)
    assert any("labls" in line and "labels" in line for line in found)
    assert len(found) == len(expected) + 1, found


def test_a_misspelled_key_is_one_fault_and_no_missing_key_too(path):
    assert faults(path, "fusion.methods=[{metod: ties}]") == [
        f"unknown key 'metod' at fusion.methods.0.metod ({path}). Did you mean 'method'? Valid: method, name, spaces, "
        "modes, weights, parameters, rank, polish, sizes, search, route"
    ]
    both = faults(path, "fusion.methods=[{weights: 0.3, zzz: 1}]")
    assert [line.split(" at ")[0] for line in both] == ["a key is missing", "unknown key 'zzz'"]


def test_what_depends_on_several_keys_is_listed_too(path):
    settings = (
        "tasks.b.name=a",
        "tasks.a.metric=rouge_l",
        "modes={m: {train: l-lora}, 'n n': {}}",
        "fusion.subsets.sizes=[3]",
        "fusion.methods=[{method: ties, modes: [x]}, {method: average, sizes: [9]}]",
    )
    found = faults(path, *settings)
    for words in ("names must differ", "rouge_l compares", "'n n' is not a name", "there are 2 tasks", "modes x"):
        assert any(words in line for line in found), words
    assert len(found) == 6


def test_several_faults_of_one_task(path):
    found = faults(path, "base.family=causal-lm", "tasks.a.text=t", "tasks.a.chat=true", "tasks.a.stop=['']")
    assert [line.split(" at ")[0] for line in found] == [
        "a plain text has no chat, system message or references",
        "stop: a text that ends an answer must not be empty",
    ]


def test_tasks_are_checked_beside_a_faulty_base_but_not_without_a_family(path):
    found = faults(path, "base.max_length=0", "tasks.a.metrik=x")
    assert [line.split(" at ")[1].split(".")[0] for line in found] == ["base", "tasks"]
    assert len(faults(path, "base.family=txt", "tasks.a.metrik=x")) == 1, "which keys are valid depends on the family"


def test_a_value_of_several_types_is_one_fault(path):
    found = faults(path, "fusion.subsets.per_size=0", "tasks.a.labels={x: [1]}")
    assert [line.split(" at ")[1].split(".")[0] for line in found] == ["tasks", "fusion"]
    assert "tasks.0.labels.x" in found[0]


def test_every_folder_that_is_not_set_is_named_once(path):
    path.write_text(RECIPE.replace("a.csv", '"${data.x}/a"').replace("b.csv", '"${data.x}/${data.y}"'))
    assert [line.split(" at ")[0] for line in faults(path)] == ["data.x is not set", "data.y is not set"]


def test_the_message_of_several_is_one_line_and_bounded(path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"zz{n}={n}" for n in range(30)])
    error = caught.value
    assert (len(error.faults), error.what, error.where) == (30, "30 faults", str(path))
    assert "\n" not in str(error)
    assert "(20) unknown key 'zz19'" in str(error)
    assert str(error).endswith("; and 10 more")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_single_keys_apart_from_each_other():
    assert faults_of(LoraSettings, {"r": 3}) is None
    found = faults_of(LoraSettings, {"r": 0, "x": 1})
    assert found is not None
    assert [one["loc"] for one in found.errors()] == [("r",), ("x",)]
    refuse([])
    with pytest.raises(ValueError, match="one"):
        refuse([Fault("one", ("r",))], found)
    with pytest.raises(RecipeError, match="unknown key 'x' at x"):
        validate(LoraSettings, {"x": 1}, "here")
    assert (nearest("metod", ["name", "method"]), nearest("zzz", ["name"])) == ("method", None)


def test_the_terminal_has_a_line_for_each(path, monkeypatch, capsys):
    path.write_text(MANY)
    monkeypatch.setattr(sys, "argv", ["tangora", "run", str(path), "--dry-run"])
    with pytest.raises(SystemExit, match="2"):
        main()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: 18 faults in ")
    assert all(line.startswith("  ") for line in lines[1:])
    assert len(lines) == 19
