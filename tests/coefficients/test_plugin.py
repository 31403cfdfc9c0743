"""A search of another package: installed, named by a recipe, and found in all that a run writes."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tangora.config.recipe import load_recipe
from tangora.runs.runner import run
from tangora.support.registry import Registry
from tangora.support.seams import SEARCHES
from tangora.support.source import source_digest
from tangora.testing import check_search
from tiny_run import recipe_for

SOURCE = Path(__file__).parents[2] / "examples" / "plugins" / "search"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example, installed offline where Python finds it, for the length of these tests."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(place), str(SOURCE)], check=True)
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    vars(SEARCHES).pop("_entries", None)
    yield place
    sys.path.remove(str(place))
    sys.modules.pop("tangora_coordinates", None)
    SEARCHES.unregister("coordinates")
    vars(SEARCHES).pop("_entries", None)


def test_it_keeps_the_contract(installed):
    assert isinstance(SEARCHES, Registry)
    assert "coordinates" in SEARCHES
    check_search(SEARCHES.get("coordinates"), rounds=2)


def test_a_recipe_names_it_and_a_run_uses_it(installed, tiny_bert, text_data, tmp_path, monkeypatch):
    raw = recipe_for(tiny_bert, text_data)
    raw["tasks"], raw["modes"] = raw["tasks"][:2], {"lora": {}}
    search = {"name": "coordinates", "rounds": 1, "labels": 3}
    raw["fusion"] = {"methods": [{"method": "ties", "search": search, "name": "mine"}]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setattr("tangora.report.build", lambda out: out)
    out = run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")
    (found,) = json.loads((out / "searches.json").read_text())["rows"]
    assert found["search"] == "coordinates"
    assert (found["labels"], found["rows"]) == (3, {"plain": 3, "good": 3})
    with (out / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "mine"]
    assert rows
    assert all(json.loads(row["coefficients"])["weights"] == found["weights"] for row in rows)
    fused = json.loads((out / "fused" / "lora" / "mine" / "tangora.json").read_text())["fused"]
    assert fused["selection"]["search"] == "coordinates"
    assert fused["weights"] == found["weights"]


def test_an_unknown_key_of_it_is_refused_like_one_of_ours(installed, tmp_path):
    from tangora.config.recipe import FusionEntry

    with pytest.raises(ValueError, match=r"unknown key 'round'\. Did you mean 'rounds'"):
        FusionEntry.model_validate({"method": "ties", "search": "coordinates", "round": 3})


def test_another_package_s_code_is_in_the_digest_and_its_prose_is_not(tmp_path, monkeypatch):
    """The keys of cached searches and scores hold this digest, of the search as of the method."""
    from tangora.support import source

    def digest_of(text):
        for kept in (source._read, source._file, source._closure):
            kept.cache_clear()
        (tmp_path / "someones.py").write_text(text)
        sys.modules.pop("someones", None)
        importlib.invalidate_caches()
        module = importlib.import_module("someones")
        return source_digest(module.halve)

    monkeypatch.syspath_prepend(str(tmp_path))
    first = digest_of('def halve(deltas, *, weights):\n    """Halve."""\n    return deltas[0] / 2\n')
    prose = digest_of('def halve(deltas, *, weights):\n    """Return a half."""\n    return deltas[0] / 2  # of it\n')
    other = digest_of('def halve(deltas, *, weights):\n    """Halve."""\n    return deltas[0] / 3\n')
    sys.modules.pop("someones", None)
    assert first == prose != other
