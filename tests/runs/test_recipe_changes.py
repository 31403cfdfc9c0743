"""Another recipe for a run's folder is refused, and the message names the keys that differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tangora.config.recipe import load_recipe
from tangora.errors import OutputError
from tangora.runs.changes import changes
from tangora.runs.folder import claim

RECIPE = """
name: tiny
base: {family: text-classification, model: bert}
tasks:
  - {name: a, source: {csv: {train: a.csv, test: b.csv}}}
  - {name: b, source: {csv: a.csv}}
fusion: {methods: [{method: average}, {method: ties, weights: [0.3]}]}
"""


MODES = "modes={lora: {lora: {r: 2}}, l-lora: {train: l-lora}}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("a.csv", "b.csv", "bert"):
        (folder / name).write_text("x")
    (folder / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(load_recipe("r.yaml").to_yaml(run))
    return folder


def refused(*settings, out="run"):
    with pytest.raises(OutputError, match="a run of another recipe") as caught:
        claim(Path(out), load_recipe("r.yaml", settings), overwrite=False)
    return str(caught.value)


def test_changed_keys_are_named_with_both_values(project):
    message = refused(
        "training.steps=7",
        "lora.target_modules=[q, v]",
        "tasks.b.metric=macro_f1",
        MODES,
    )
    assert "(tasks.b.metric: accuracy → macro_f1; lora.target_modules: ['query', 'value'] → ['q', 'v']; " in message
    assert "training.steps: 200 → 7; modes.lora.lora.r: added)" in message
    assert "pass --overwrite" in message


def test_added_and_removed_items_are_named(project):
    message = refused("fusion.methods=[{method: average}, {method: tsv}]", "modes={lora: {}}")
    assert "(modes.l-lora: removed; fusion.methods.ties: removed; fusion.methods.tsv: added)" in message


def test_many_changes_are_counted(project):
    many = [f"training.{key}=3" for key in ("steps", "batch_size", "gradient_accumulation", "workers", "weight_decay")]
    many += [f"lora.{key}=3" for key in ("r", "alpha")]
    many += ["seed=3", "evaluation.batch_size=3", "title=x"]
    assert "; and 2 more)" in refused(*many)


def test_the_same_recipe_and_what_may_change_go_on(project):
    claim(Path("run"), load_recipe("r.yaml"), overwrite=False)
    claim(Path("run"), load_recipe("r.yaml", ["executor=processes", "machine.threads=1"]), overwrite=False)
    claim(Path("run"), load_recipe("r.yaml", ["seed=3"]), overwrite=True)


def test_a_run_that_was_moved_goes_on_with_its_data_or_without(project, tmp_path, monkeypatch):
    (project / "run").rename(tmp_path / "elsewhere")
    claim(tmp_path / "elsewhere", load_recipe("r.yaml"), overwrite=False)
    (tmp_path / "elsewhere").rename(project / "run")
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    claim(Path("run"), load_recipe("r.yaml"), overwrite=False)


def test_another_file_at_another_place_is_a_change(project):
    (project / "c.csv").write_text("x")
    assert "(tasks.b.source.csv: a.csv → c.csv)" in refused("tasks.b.source.csv=c.csv")
    (project / "more").mkdir()
    (project / "more" / "a.csv").write_text("x")
    assert "tasks.b.source.csv: a.csv → more/a.csv" in refused("tasks.b.source.csv=more/a.csv")


def test_a_recipe_that_cannot_be_read_is_another_one(project):
    (project / "run" / "recipe.yaml").write_text("name: [")
    assert "another recipe at run/recipe.yaml" in refused()


def test_items_in_another_order_and_of_one_name():
    one, two = {"name": "a", "x": 1}, {"name": "b", "x": 1}
    assert changes({"t": [one, two]}, {"t": [two, one]}) == ["t: in another order"]
    assert changes({"t": [one, one]}, {"t": [one, {"name": "a", "x": 2}]}) == ["t.a[1].x: 1 → 2"]
    assert changes({"t": [one]}, {"t": [two, {**one, "x": None}]}) == ["t.a.x: 1 → null", "t.b: added"]
    assert changes({"t": "y" * 99}, {"t": False}) == [f"t: {'y' * 58} … → false"]
