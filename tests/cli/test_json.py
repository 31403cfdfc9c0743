"""``--json``: one document on stdout for every command that prints a result, and nothing else there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import toys
from folders import save
from tangora.cli import app
from tangora.cli.commands import command
from tangora.support.seams import ROUTERS

TASKS = ("one", "two")


def document(*arguments):
    """What a command prints with --json; everything else it prints is on stderr."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(done.stdout, parse_constant=refuse)


@pytest.fixture(autouse=True)
def _there(workshop, monkeypatch):
    monkeypatch.chdir(workshop)


@pytest.fixture
def recipe():
    return Path("recipe.yaml")


@pytest.fixture
def run():
    """The folder of a finished run."""
    return Path("run")


def test_every_command_has_the_option():
    for name in get_command(app).commands:
        assert any("--json" in parameter.opts for parameter in command(name).built().params), name


def test_run(run, recipe):
    printed = document("run", recipe, "--out", run)
    assert Path(printed["report"]) == (run / "report.html").resolve()
    assert printed["tasks"] == list(TASKS)
    assert set(printed["experts"]) == {"lora", "tangent"}
    fusion = next(f for f in printed["fusions"] if (f["mode"], f["method"]) == ("lora", "task_arithmetic"))
    assert fusion["coefficients"]["weights"][0] in (0.5, 1.0)
    assert fusion["mean"] == pytest.approx(sum(t["score"] for t in fusion["tasks"].values()) / 2, abs=1e-6)
    assert printed["headline"][0].startswith("With 2 tasks fused")


def test_a_dry_run(recipe, tmp_path):
    planned = document("run", recipe, "--out", tmp_path / "run", "--dry-run")
    assert planned["dry_run"] is True
    assert planned["run"] == str((tmp_path / "run").resolve())
    assert planned["tasks"] == list(TASKS)
    modes = {mode["mode"]: mode for mode in planned["modes"]}
    assert {"lora", "tangent"} == set(modes)
    assert (modes["lora"]["adapters"], modes["lora"]["done"]) == (2, 0)
    assert modes["lora"]["trainable"][0] > 0
    assert planned["size"] == sum(mode["size"] for mode in modes.values())
    assert [job["done"] for job in planned["jobs"]] == [False] * len(planned["jobs"])
    assert {"expert", "tables", "report"} <= {job["kind"] for job in planned["jobs"]}
    assert planned["seconds"] is None, "nothing was measured yet"
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_finished_run(run, recipe):
    planned = document("run", recipe, "--out", run, "--dry-run")
    assert all(mode["done"] == mode["adapters"] for mode in planned["modes"])
    assert all(job["done"] for job in planned["jobs"])
    assert planned["jobs"] == document("jobs", run)["jobs"]
    assert planned["seconds"] == 0


def test_what_looks_into_a_run(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("analysis"))  # other tests may have analysed it
    assert document("report", folder) == {"report": str((folder / "report.html").resolve())}
    planned = document("analyze", folder, "--dry-run", "--only", "signs,angles")
    assert planned["plan"][0].startswith("to compute: 2 signs, 2 angles")
    analysed = document("analyze", folder, "--only", "signs", "--modes", "lora")
    assert 0 <= analysed["analyses"]["lora"]["sign conflict"] <= 1
    explored = document("explore", folder)
    assert Path(explored["explorer"]).name == "explorer-tangent.html"


def test_what_works_on_adapters(run, recipe, tmp_path):
    folder = run
    experts = [folder / "adapters" / "lora" / name for name in TASKS]
    trained = document("finetune", recipe, "--task", "one", "--out", tmp_path / "one")
    assert (trained["task"], trained["mode"]) == ("one", "lora")
    assert len(trained["training"]["loss"]) > 0
    scored = document("evaluate", recipe, *experts)
    assert set(scored["scores"]) == {"zero-shot", *map(str, experts)}
    assert set(scored["scores"]["zero-shot"]["tasks"]) == set(TASKS)
    collected = document("statistics", recipe, experts[0], "--rows", 4, "--out", tmp_path / "one.safetensors")
    assert (collected["task"], collected["rows"], collected["tensors"]) == ("one", 4, 8)
    teacher = folder / "fused" / "tangent" / "task_arithmetic"
    student = document("distill", recipe, teacher, "--rows", 4, "--out", tmp_path / "student")
    assert student["teachers"] == [str(teacher.resolve())]
    assert math.isfinite(student["training"]["loss"][-1])


def test_what_fuses(tmp_path):
    for seed in (1, 2):
        toys.lora(seed).save(tmp_path / f"a{seed}")
    pair = [tmp_path / "a1", tmp_path / "a2"]
    base = save(tmp_path / "base", toys.toy().state_dict(), config={})
    assert document("fuse", *pair, "--rank", 1, "--out", tmp_path / "fused")["ranks"] == [1]
    assert document("merge", *pair, "--base", base, "--dry-run", "--out", tmp_path / "merged")["dry_run"] is True
    inspected = document("inspect", *pair, base)
    assert [one["kind"] for one in inspected["folders"]] == ["lora", "lora", "checkpoint"]
    assert "ties" in inspected["fusable"]["spaces"]["delta"]


def test_what_looks_things_up():
    import tangora

    methods = document("methods")
    assert list(methods) == [*tangora.methods(), *ROUTERS]
    assert methods["ties"]["parameters"] == {"density": 0.2}
    assert methods["smile"]["parameters"] == {"top_k": 1, "gate_rank": 4, "rank": None}
    plugins = document("plugins")
    assert plugins["methods"]["ties"] == "tangora.methods.ties"
    assert plugins["metrics"]["macro_f1"] == "tangora.tasks.metrics.macro_f1"
    assert list(document("plugins", "metrics")) == ["metrics"]


def test_an_unknown_kind_of_plugin_is_named():
    done = CliRunner().invoke(app, ["plugins", "metric"])
    assert "did you mean 'metrics'" in str(done.exception).lower()
