"""JSON and YAML of any depth: a value, or `ValueError`; and nothing reads JSON of others in another way."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import tangora
from tangora.config.recipe import load_recipe
from tangora.errors import FileError, RecipeError
from tangora.support import yaml
from tangora.support.files import read_json
from tangora.support.json_text import DEEPEST, parse_json

ROOT = Path(tangora.__file__).parent
# What is parsed there was written by the same process.
OWN = {"storage/architecture.py", "support/json_text.py"}


def nested(depth):
    """A text with so many lists and mappings in each other."""
    return "[" * (depth - 1) + '{"a": 1}' + "]" * (depth - 1)


@pytest.mark.parametrize("parse", [parse_json, yaml.parse])
def test_the_deepest_text(parse):
    assert parse(nested(DEEPEST)) == json.loads(nested(DEEPEST))
    for depth in (DEEPEST + 1, 500, 100_000):
        with pytest.raises(ValueError, match=r"in each other|too deep"):
            parse(nested(depth))


def test_a_wide_text_is_not_deep():
    value = {"vocab": {str(i): [i, [i]] for i in range(1000)}, "merges": [["a", "b"]] * 1000}
    assert parse_json(json.dumps(value)) == value


def test_files_and_recipes_name_the_place(tmp_path):
    deep, path = nested(300), tmp_path / "recipe.yaml"
    path.write_text(deep)
    with pytest.raises(RecipeError, match=r"not readable as YAML .*in each other"):
        load_recipe(path)
    with pytest.raises(FileError, match=r"not readable as JSON .*in each other"):
        read_json(path)
    with pytest.raises(RecipeError, match="must be YAML"):
        load_recipe("quickstart", [f"seed={deep}"])


def test_no_other_reader_of_json():
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.loads", "json.load"):
                found.add(path.relative_to(ROOT).as_posix())
    assert {name for name in found if not name.startswith("testing/")} == OWN | {"storage/header.py"}
