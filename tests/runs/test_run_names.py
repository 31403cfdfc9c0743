"""Names that ``scores.csv`` and the folders of a run have for something else, and `only` beside other options."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tangora.config.comparison import FusionConfig
from tangora.config.recipe import Recipe
from tangora.errors import ArgumentError


@pytest.mark.parametrize("name", ["mean", "mean_all"])
def test_a_task_is_not_called_as_a_mean_over_tasks(short_recipe, name):
    raw = short_recipe.model_dump(mode="json")
    raw["tasks"][0]["name"] = name
    with pytest.raises(ValueError, match=rf"{name} is what scores\.csv calls a mean over tasks: give the task another"):
        Recipe.model_validate(raw)


@pytest.mark.parametrize("name", ["expert", "zero_shot"])
def test_an_entry_is_not_called_as_what_it_is_compared_with(name):
    with pytest.raises(ValueError, match=rf"name: {name} is what scores\.csv calls a row to compare with"):
        FusionConfig.model_validate({"methods": [{"method": "average", "name": name}]})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([{"name": "a-core"}, {"name": "a", "spaces": ["core"]}], "'a-core' and 'a' have one folder, a-core"),
        ([{"name": "a"}, {"name": "a-oracle"}], "'a' and 'a-oracle' have one folder, a-oracle"),
        ([{"name": "a"}, {"name": "a", "modes": ["lora"]}], "two entries are called 'a' in space delta"),
    ],
)
def test_fused_adapters_have_a_folder_each(methods, message):
    entries = [{"method": "average", **one} for one in methods]
    with pytest.raises(ValueError, match=message):
        FusionConfig.model_validate({"methods": entries, "selection": ["validation", "oracle"]})


def test_entries_of_different_modes_may_share_a_name():
    entries = [{"method": "ties", "modes": ["lora"]}, {"method": "ties", "modes": ["l-lora"]}]
    assert len(FusionConfig.model_validate({"methods": entries}).methods) == 2


def test_another_recipe_with_a_wrong_part_leaves_the_run_as_it_was(short_copy, short_recipe):
    before = (short_copy / "recipe.yaml").read_bytes()
    raw = short_recipe.model_dump(mode="json")
    raw["training"]["steps"] += 1
    for text in ("knots", ""):
        with pytest.raises(ArgumentError, match="no job has this in its label"):
            tangora.run(Recipe.model_validate(raw), short_copy, overwrite=True, only=[text])
        assert (short_copy / "recipe.yaml").read_bytes() == before


def test_a_dry_run_shows_the_part_alone(short_copy, tmp_path):
    recipe = str(short_copy / "recipe.yaml")
    command = ["run", recipe, "--out", str(tmp_path / "run"), "--dry-run", "--json", "--only", "lora · plain"]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert [job["label"] for job in json.loads(made.stdout)["jobs"]] == ["lora · plain", "score · lora · plain"]
    assert not (tmp_path / "run").exists()


def test_the_report_as_a_part_has_the_record_of_a_whole_run(short_copy, short_recipe, monkeypatch):
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    monkeypatch.setattr("tangora.runs.runner.used_rows", lambda context: {"rows": 3})
    tangora.run(short_recipe, short_copy, only=["report"])
    assert json.loads((short_copy / "run.json").read_text())["statistics"] == {"rows": 3}


def test_a_part_of_a_changed_recipe_says_that_the_tables_are_old(short_copy, tmp_path):
    recipe = str(short_copy / "recipe.yaml")
    command = ["run", recipe, "--out", str(short_copy), "--only", "lora · plain", "--overwrite"]
    made = CliRunner().invoke(app, [*command, "--set", "training.steps=3"])
    assert made.exit_code == 0, made.output
    assert "scores.csv and the other tables are of an earlier state" in " ".join(made.output.split())
