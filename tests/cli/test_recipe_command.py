"""``tangora recipe``: bundled recipes, keys and the schema, in a terminal and for programs."""

from __future__ import annotations

import json

import pytest

from tangora.config.recipe import bundled_recipes, bundled_text
from tangora.errors import ArgumentError, RecipeError
from workshop import done as command


def refused(*arguments):
    with pytest.raises(AssertionError) as caught:
        command(*arguments)
    return caught.value.args[0][1]


def test_the_list_has_names_and_titles():
    lines = command("recipe", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == bundled_recipes()
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert all(len(line) <= 80 for line in lines)
    found = json.loads(command("recipe", "list", "--json").stdout)
    assert found["quickstart"]["family"] == "image-zero-shot"


def test_a_recipe_is_shown_as_it_is():
    assert command("recipe", "show", "text7").stdout == bundled_text("text7")
    assert json.loads(command("recipe", "show", "text7", "--json").stdout)["yaml"] == bundled_text("text7")


def test_keys_by_path_family_and_mode():
    lines = command("recipe", "keys", "tasks.choices", "--family", "causal-lm").stdout.splitlines()
    assert lines[0] == "tasks[].choices: text | list of text | null; default: null"
    assert lines[1].startswith("  column with the choices of a row")
    assert "modes.NAME.ups: int >= 1; default: 4; mode: dyadic" in command("recipe", "keys", "modes").stdout
    assert "mode: dyadic" not in command("recipe", "keys", "modes", "--mode", "dyadic").stdout
    document = json.loads(command("recipe", "keys", "seed", "--json").stdout)
    assert document["keys"][0]["path"] == "seed"


def test_the_schema_is_json_on_stdout():
    schema = json.loads(command("recipe", "schema").stdout)
    assert schema == json.loads(command("recipe", "schema", "--json").stdout)
    assert schema["properties"]["seed"]["type"] == "integer"


def test_what_is_refused():
    for arguments, kind, words in (
        (("recipe", "shwo"), ArgumentError, "did you mean 'show'"),
        (("recipe", "show"), ArgumentError, "which recipe"),
        (("recipe", "show", "txt7"), RecipeError, "did you mean 'text7'"),
        (("recipe", "schema", "x"), ArgumentError, "takes no name"),
        (("recipe", "list", "--mode", "lora"), ArgumentError, "an option of keys"),
        (("recipe", "keys", "sede"), ArgumentError, "did you mean 'seed'"),
    ):
        error = refused(*arguments)
        assert isinstance(error, kind)
        assert words.lower() in str(error).lower()
