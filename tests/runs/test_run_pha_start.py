"""A further task for a run of `pha`: another run, whose mode starts from an adapter of the first one."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tiny_run import recipe_for

SIZES = {"bottleneck": 4, "prototype": 6, "layer": 5, "hidden": 7, "code": 3}


def written(path, model, data, names):
    raw = recipe_for(model, data)
    raw["tasks"] = [task for task in raw["tasks"] if task["name"] in names]
    raw["modes"] = {"pha": {"train": "pha", "training": {"steps": 2}, **SIZES}}
    del raw["lora"]
    raw["fusion"] = {"methods": [{"method": "average"}]}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def run(recipe, out, *settings):
    options = [f"--set={setting}" for setting in settings]
    return CliRunner().invoke(app, ["run", str(recipe), "--out", str(out), *options])


@pytest.fixture(scope="module")
def first(tiny_bert, text_data, tmp_path_factory):
    home = tmp_path_factory.mktemp("pha")
    done = run(written(home / "first.yaml", tiny_bert, text_data, {"plain", "good"}), home / "first")
    assert done.exit_code == 0, (done.output, done.exception)
    return home / "first"


def test_a_further_task_has_a_prototype_beside_the_earlier_ones(first, tiny_bert, text_data, tmp_path):
    recipe = written(tmp_path / "more.yaml", tiny_bert, text_data, {"f1"})
    done = run(recipe, tmp_path / "more", f"modes.pha.start={first / 'adapters' / 'pha' / 'plain'}")
    assert done.exit_code == 0, (done.output, done.exception)
    made = tangora.load(tmp_path / "more" / "adapters" / "pha" / "f1").metadata.modules
    assert made["nearest"] in {"plain", "good"}
    assert {row.name for row in (tmp_path / "more" / "adapters" / "pha").iterdir()} == {"f1"}


@pytest.mark.parametrize(
    ("names", "start", "said"),
    [
        ({"f1"}, "nowhere", "nowhere"),
        ({"plain"}, "first/adapters/pha/plain", "plain"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_training(first, tiny_bert, text_data, tmp_path, names, start, said):
    recipe = written(tmp_path / "more.yaml", tiny_bert, text_data, names)
    done = run(recipe, tmp_path / "more", f"modes.pha.start={first.parent / start}")
    assert isinstance(done.exception, tangora.TangoraError), (done.output, done.exception)
    assert said in str(done.exception)
    assert not list((tmp_path / "more").glob("adapters/pha/*/tangora.json"))
