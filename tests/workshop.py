"""A folder like a user's, in which the examples of docstrings run: a base model, data, adapters, checkpoints, a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

import tiny
from folders import family

TASKS = ("one", "two")


def recipe(encoder: str, data: str) -> dict:
    """Two tasks in two modes and two fusions, in seconds."""
    files = {"train": f"{data}/train.parquet", "test": f"{data}/test.parquet"}
    task = {"source": {"parquet": files}, "labels": ["red", "green", "blue"], "limit": {"test": 12}}
    return {
        "name": "small",
        "base": {"family": "text-zero-shot", "model": encoder, "max_length": 16},
        "tasks": [{"name": name, **task} for name in TASKS],
        "lora": {"r": 2},
        "training": {"steps": 2, "batch_size": 4},
        "modes": {"lora": {}, "tangent": {"linearize": "model"}},
        "fusion": {"methods": [{"method": "average"}, {"method": "task_arithmetic", "weights": [0.5, 1.0]}]},
        "evaluation": {"bootstrap": 100},
    }


def furnish(folder: Path) -> Path:
    """Fill the folder; relative paths in it are relative to it."""
    tiny.bert(folder / "encoder")
    tiny.tuned(folder / "encoder", folder / "tuned")
    tiny.texts(folder / "colors")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe("encoder", "colors")))
    family(folder / "models", 2)  # base, m0, m1
    import os

    from tangora.config.recipe import load_recipe
    from tangora.runs.runner import run

    before = Path.cwd()
    os.chdir(folder)
    try:
        run(load_recipe("recipe.yaml"), "run")
    finally:
        os.chdir(before)
    for name in TASKS:
        shutil.copytree(folder / "run" / "adapters" / "lora" / name, folder / "adapters" / name)
    return folder


def done(*arguments):
    """Return the result of a command that succeeds, given in this process."""
    from typer.testing import CliRunner

    from tangora.cli import app

    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result
