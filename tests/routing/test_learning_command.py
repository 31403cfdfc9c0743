"""`tangora fuse --method wemoe`: a router that learns from rows of files, or of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tangora.config.settings import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.modes.finetuning import finetune


@pytest.fixture(scope="module")
def experts(text_base, text_task, tmp_path_factory) -> list[Path]:
    """Two experts of the same rows, with records of how these are read."""
    from dataclasses import replace

    home, made = tmp_path_factory.mktemp("experts"), []
    training = TrainingSettings(steps=6, batch_size=8, checkpoint_every=None, learning_rate=1e-2)
    lora = LoraSettings(r=2, target_modules=["query", "dense"])
    for seed, name in enumerate(("one", "two")):
        config = FinetuneConfig(mode="lora", lora=lora, training=training, seed=seed)
        finetune(text_base, replace(text_task, name=name), config, out=home / name)
        made.append(home / name)
    return made


@pytest.fixture
def bare(text_data, tmp_path) -> Path:
    """Rows of the inputs without a column of labels."""
    table = parquet.read_table(text_data / "train.parquet").select(["text"])
    parquet.write_table(table, tmp_path / "bare.parquet")
    return tmp_path / "bare.parquet"


QUICK = [f"--set={key}" for key in ("rows=8", "steps=2", "batch_size=4", "learning_rate=0.01")]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def rows(bare):
    return "--data", f"one={bare}", "--data", f"two={bare}"


@pytest.mark.parametrize(
    ("method", "settings"), [("wemoe", []), ("e-wemoe", ["--set=keep=0.2"]), ("wemoe", ["--set=objective=follow"])]
)
def test_a_router_learns_from_files_without_labels(experts, bare, tmp_path, method, settings):
    out = tmp_path / "out"
    done = run("fuse", *experts, "--method", method, *rows(bare), *QUICK, *settings, "--out", out)
    assert done.exit_code == 0, (done.output, done.exception)
    objective = "follow" if settings == ["--set=objective=follow"] else "entropy"
    assert f"learned by {objective} on 8 train rows of each task" in done.stdout
    assert "→" in done.stdout
    made = tangora.load(out)
    assert made.metadata.fused.method == method
    assert made.metadata.fused.selection["rows"] == {"one": 8, "two": 8}
    assert not list(tmp_path.glob(".out*"))
    card = (out / "README.md").read_text()
    assert f"| task | {objective} before | after |" in card
    assert "curve" not in card
    assert f"router: {method}" in run("inspect", out).stdout


def test_a_dry_run_counts_passes_and_writes_nothing(experts, bare, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = run("fuse", *experts, "--method", "wemoe", *rows(bare), *QUICK, "--out", tmp_path / "out", "--dry-run")
    # 2 steps of 4 rows of 2 tasks, a backward pass counting as two; 8 rows of both judged twice
    assert "about 80 rows through the model" in done.stdout, (done.output, done.exception)
    assert sorted(tmp_path.iterdir()) == before


def test_the_document(experts, bare, tmp_path):
    done = run("fuse", *experts, "--method", "wemoe", *rows(bare), *QUICK, "--out", tmp_path / "out", "--json")
    document = json.loads(done.stdout)
    assert document["method"] == "wemoe"
    assert document["selection"]["objective"] == "entropy"
    assert document["numbers"]["gates"] == document["selection"]["trained"]


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("wemoe", [], "wemoe needs rows"),
        ("wemoe", ["--data", "one"], "rows are NAME=FILE"),
        ("wemoe", ["--data", "one=FILE"], "no rows for this task"),
        ("wemoe", ["--data", "one=FILE", "--data", "two=FILE", "--weights", "0.3"], "is a router"),
        ("smile", ["--data", "one=FILE"], "learns from no rows"),
        ("ties", ["--recipe", "quickstart"], "learns from no rows"),
    ],
)
def test_refusals(experts, bare, tmp_path, method, arguments, said):
    given = [argument.replace("FILE", str(bare)) for argument in arguments]
    done = run("fuse", *experts, "--method", method, *given, "--out", tmp_path / "out")
    assert said in str(done.exception) + done.output
    assert not (tmp_path / "out").exists()
