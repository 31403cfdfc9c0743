"""Paths in a recipe: beside its file first, then in the working directory, and found again in a run that was moved."""

from __future__ import annotations

import logging

import pytest

from tangora.config.places import places
from tangora.config.recipe import load_recipe, load_run_recipe

RECIPE = """
name: tiny
data: {root: files}
base: {family: text-classification, model: bert}
tasks:
  - {name: a, source: {csv: {train: files/a.csv, test: "${data.root}/b.csv"}}, labels_from: info.json}
  - {name: b, source: {csv: files/a.csv}}
modes: {m: {}, p: {train: pha, start: earlier}}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe in a folder of it; the working directory is the outer one."""
    folder = tmp_path / "project"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    return folder


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def paths(recipe):
    return [path for _, path in places(recipe)]


ALL = ("files/a.csv", "files/b.csv", "info.json", "bert", "earlier")


def test_paths_are_relative_to_the_recipe(project, caplog, monkeypatch):
    write(project / "recipes", *ALL)
    found = paths(load_recipe("recipes/r.yaml"))
    assert found == [
        f"recipes/{name}" for name in ("bert", "files/a.csv", "files/b.csv", "info.json", "files/a.csv", "earlier")
    ]
    assert not caplog.records
    monkeypatch.chdir(project / "recipes")
    assert paths(load_recipe("r.yaml")) == [name.removeprefix("recipes/") for name in found]
    (project.parent / "elsewhere").mkdir()
    monkeypatch.chdir(project.parent / "elsewhere")
    assert paths(load_recipe(project / "recipes" / "r.yaml")) == [str(project / name) for name in found]


def test_what_is_only_in_the_working_directory_is_used_and_named(project, caplog):
    write(project, *ALL)
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe("recipes/r.yaml")
    assert paths(recipe) == ["bert", "files/a.csv", "files/b.csv", "info.json", "files/a.csv", "earlier"]
    (line,) = caplog.messages
    assert line.endswith(
        "in the working directory, and not beside the recipe: bert, files/a.csv, files/b.csv, info.json, earlier"
    )


def test_beside_the_recipe_comes_first(project, caplog):
    write(project, *ALL)
    write(project / "recipes", *ALL)
    assert all(path.startswith("recipes/") for path in paths(load_recipe("recipes/r.yaml")))
    assert not caplog.records


def test_a_missing_file_is_expected_beside_the_recipe_and_a_missing_model_may_be_an_id(project):
    recipe = load_recipe("recipes/r.yaml")
    assert recipe.base.model == "bert"
    assert recipe.tasks[1].source.csv == "recipes/files/a.csv"


def test_settings_are_relative_to_the_working_directory(project, caplog):
    write(project, *ALL, "mine.csv", "other/b.csv")
    write(project / "recipes", *ALL, "mine.csv", "other/b.csv")
    settings = ["tasks.b.source.csv=mine.csv", "data.root=other", "base.model=bert"]
    recipe = load_recipe("recipes/r.yaml", settings)
    assert recipe.tasks[1].source.csv == "mine.csv"
    assert recipe.tasks[0].source.csv == {"train": "recipes/files/a.csv", "test": "other/b.csv"}
    assert recipe.base.model == "bert"
    assert not caplog.records
    (project / "mine.csv").unlink()
    assert load_recipe("recipes/r.yaml", settings).tasks[1].source.csv == "recipes/mine.csv"


def test_absolute_paths_and_those_of_a_home_stay(project, tmp_path):
    write(project / "recipes", *ALL)
    settings = [f"base.model={tmp_path}/x", "tasks.b.source.csv=~/a.csv"]
    recipe = load_recipe("recipes/r.yaml", settings)
    assert (recipe.base.model, recipe.tasks[1].source.csv) == (f"{tmp_path}/x", "~/a.csv")


def test_the_recipe_of_a_run_is_found_again_after_the_project_was_moved(project, tmp_path, monkeypatch, caplog):
    write(project / "recipes", *ALL)
    recipe = load_recipe("recipes/r.yaml")
    run = project / "runs" / "x"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(recipe.to_yaml(run))
    assert load_run_recipe(run) == recipe
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert load_run_recipe(tmp_path / "moved" / "runs" / "x") == recipe == load_recipe("recipes/r.yaml")
    monkeypatch.chdir(tmp_path)
    assert paths(load_run_recipe(tmp_path / "moved" / "runs" / "x")) == [f"moved/{path}" for path in paths(recipe)]
    assert not caplog.records


def test_the_recipe_of_an_older_run_has_paths_from_the_working_directory(project, caplog):
    write(project / "recipes", *ALL)
    recipe = load_recipe("recipes/r.yaml")
    run = project / "runs" / "x"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_run_recipe(run) == recipe
    assert not caplog.records
