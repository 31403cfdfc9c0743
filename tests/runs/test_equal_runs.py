"""Two runs of one recipe in two folders: the same bytes, but for the wall times that the documentation lists."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import pytest

import tangora
from tangora.report import html
from tangora.testing._tiny_run import tiny_recipe

pytestmark = pytest.mark.drawn

PAGE = Path(__file__).parents[2] / "docs/design/runs.md"


def listed():
    """The patterns of paths in the list of the documentation."""
    block = PAGE.read_text(encoding="utf-8").split("## What differs between equal runs")[1].split("```")[1]
    return [re.sub("<[^>]+>", "*", line.split()[0]) for line in block.strip().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same recipe; the report draws one figure."""
    root = tmp_path_factory.mktemp("equal")
    recipe = tiny_recipe(root / "made")
    modes = {"modes={lora: {}, tangent: {linearize: model}}", "fusion.methods=[{method: average}]"}
    recipe = tangora.load_recipe(root / "made/recipe.yaml", sorted(modes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "PLOTS", html.PLOTS[:1])
        return [tangora.run(recipe, root / name, progress=False) for name in ("one", "another/place")]


def files(run):
    return {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}


def test_only_what_is_listed_differs(runs):
    one, other = map(files, runs)
    assert one.keys() == other.keys()
    assert "explorer-tangent.html" in one
    assert "figures" in {path.split("/")[0] for path in one}
    differ = [name for name in one if one[name].read_bytes() != other[name].read_bytes()]
    assert {name for name in differ if not any(PurePosixPath(name).match(pattern) for pattern in listed())} == set()
    same = {pattern for pattern in listed() if not any(PurePosixPath(name).match(pattern) for name in differ)}
    assert same <= {"report.html"}  # it shows times in tenths of a second, which may be equal


def test_what_differs_are_wall_times(runs):
    for name in [name for name in files(runs[0]) if name == "run.json" or name.endswith("training.json")]:
        one, other = (json.loads((run / name).read_text()) for run in runs)
        assert {key for key in one | other if one.get(key) != other.get(key)} <= {"seconds"}, name


def test_no_file_but_the_log_contains_the_runs_folder(runs):
    for run in runs:
        holding = [name for name, path in files(run).items() if str(run).encode() in path.read_bytes()]
        assert holding == ["run.log"]
