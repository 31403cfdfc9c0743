"""The list of a recipe's keys is complete, and every key is described."""

from __future__ import annotations

import typing

import pytest
from pydantic import BaseModel

from tangora.config.recipe import Recipe
from tangora.config.reference import keys_below, recipe_keys, type_text
from tangora.errors import ArgumentError
from tangora.support.seams import EXECUTORS, FAMILIES, MODES, ROUTERS, SEARCHES


def classes(annotation):
    """The settings classes in an annotation."""
    found = [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    return found + [one for part in typing.get_args(annotation) for one in classes(part)]


def reached(model, seen):
    """A class and those of its fields."""
    if model in seen:
        return
    seen.append(model)
    for field in model.model_fields.values():
        for one in classes(field.annotation):
            reached(one, seen)


def settings():
    seen: list[type[BaseModel]] = []
    of_families = [getattr(FAMILIES.get(n), key) for n in FAMILIES for key in ("base_settings", "task_settings")]
    others = [registry.get(name).settings for registry in (MODES, SEARCHES, ROUTERS, EXECUTORS) for name in registry]
    for model in (Recipe, *of_families, *others):
        reached(model, seen)
    return sorted(seen, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", settings(), ids=lambda model: model.__name__)
def test_every_key_has_a_description(model):
    for name, field in model.model_fields.items():
        is_of_member = name == "name" and typing.get_origin(field.annotation) is typing.Literal  # described once
        assert is_of_member or field.description, f"{model.__name__}.{name}"


def test_every_key_is_listed():
    """Every field of every settings class is the last part of a path with its description."""
    listed = {(key.path.rpartition(".")[2], key.description) for key in recipe_keys()}
    for model in settings():
        for name, field in model.model_fields.items():
            if not (name == "name" and typing.get_origin(field.annotation) is typing.Literal):
                assert field.description is not None
                told = " ".join(field.description.split())
                is_of_mode = name in ("lora", "training")  # of a mode's own class: those of the recipe
                assert is_of_mode or (name, told) in listed, (model.__name__, name)


def test_paths_are_unique_but_for_what_families_and_modes_differ_in():
    keys = recipe_keys()
    shared = [key.path for key in keys if key.of is None]
    assert len(set(shared)) == len(shared)
    assert [key.path for key in keys_below("modes.train", keys)] == ["modes.NAME.train"], "a name may be left out"
    assert [key.path for key in keys_below("modes.ups", keys)] == ["modes.NAME.ups"]
    assert len(keys_below("modes.lora", keys)) == len(keys_below("modes.mine", keys)) > 50
    assert {"name", "base.family", "tasks[].source.csv", "modes.NAME.train", "executor.name"} <= set(shared)
    assert [key.names for key in keys if key.path == "base.packing"] == [("causal-lm",)]
    assert [key.names for key in keys if key.path == "modes.NAME.block"] == [("dyadic",)]
    assert [key.names for key in keys if key.path == "executor.workers"] == [("processes",), ("ray",)]
    assert {key.default for key in keys if key.path == "tasks[].metric"} == {"accuracy", "exact_match"}


def test_keys_of_a_family_and_a_mode():
    keys = recipe_keys(family="text-classification", mode="dyadic")
    paths = [key.path for key in keys]
    assert "tasks[].text_pair" in paths
    assert "base.packing" not in paths
    assert "modes.NAME.block" in paths
    assert "modes.NAME.penalty" not in paths
    assert {key.of for key in keys} == {None, "search", "router", "executor"}
    assert len(keys) < len(recipe_keys())


@pytest.mark.parametrize(
    ("path", "first", "count"),
    [
        ("base.family", "base.family", 1),
        ("fusion.methods.0.polish.rank", "fusion.methods[].polish.rank", 1),
        ("machine", "machine", 4),
        ("modes.mine.train", "modes.NAME.train", 1),
        ("seed", "seed", 1),
        ("tasks.0.limit", "tasks[].limit", 1),
    ],
)
def test_a_path_selects_a_key_and_those_below_it(path, first, count):
    found = keys_below(path, recipe_keys(family="causal-lm", mode="lora"))
    assert (found[0].path, len(found)) == (first, count)


def test_unknown_names_and_paths():
    for options, fix in (({"family": "causal"}, "causal-lm"), ({"mode": "lorra"}, "lora")):
        with pytest.raises(ArgumentError, match=f"Did you mean '{fix}'"):
            recipe_keys(**options)
    with pytest.raises(ArgumentError, match=r"no such key, got 'machine.thread'.*Did you mean 'machine.threads'"):
        keys_below("machine.thread", recipe_keys())
    with pytest.raises(ArgumentError, match="recipe keys lists all"):
        keys_below("zzzzzz", recipe_keys())


def test_types_and_defaults_in_words():
    keys = {key.path: key for key in recipe_keys(family="causal-lm")}
    told = {
        "seed": ("0 <= int < 4294967296", "0"),
        "lora.target_modules": ("list of text | all-linear", "[query, value]"),
        "lora.dropout": ("0 <= number < 1", "0.0"),
        "tasks[].choices": ("text | list of text | null", "null"),
        "tasks[].target": ("text", '"{completion}"'),
        "tasks[].source": ("mapping", None),
        "fusion.methods": ("list of mapping", None),
        "base.packing": ("true | false", "false"),
    }
    assert {path: (keys[path].type, keys[path].default) for path in told} == told
    assert [keys[path].required for path in ("name", "base.model", "tasks[].source", "seed")] == [
        True,
        True,
        True,
        False,
    ]
    assert type_text({"type": "number", "exclusiveMinimum": 0}) == "number > 0"
