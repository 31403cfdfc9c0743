"""What goes to stdout and what to stderr, as a shell sees it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import toys
from tangora.cli.output import Output

PROGRAM = [sys.executable, "-m", "tangora"]


def shell(*arguments, **options):
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        toys.lora(seed).save(folder / f"[red]a{seed}")
    return [folder / f"[red]a{seed}" for seed in (1, 2)]


def test_json_is_all_there_is_on_stdout(pair, tmp_path):
    done = shell("fuse", *pair, "--weights=0.5,1", "--json", "--out", tmp_path / "fused")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["weights"] == [0.5, 1.0]
    assert document["method"] == "task_arithmetic"
    assert document["verified"]["error"] < 1e-5
    assert Path(document["adapter"]).is_dir()
    refused = shell("fuse", *pair, "--json", "--out", tmp_path / "fused")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: the output exists")


def test_names_are_printed_as_they_are(pair, tmp_path):
    done = shell("fuse", *pair, "--weights=0.5,1", "--out", tmp_path / "[bold]x")
    assert "weights: [red]a1 0.5, [red]a2 1" in done.stdout
    assert f"adapter: {tmp_path / '[bold]x'}" in done.stdout
    assert "\x1b" not in done.stdout


def test_quiet_leaves_the_result_and_verbose_shows_the_traceback(pair, tmp_path):
    base = tmp_path / "base"
    from folders import save

    save(base, toys.toy().state_dict(), config={})
    loud = shell("merge", *pair, "--base", base, "--out", tmp_path / "loud")
    quiet = shell("merge", *pair, "--base", base, "--out", tmp_path / "quiet", "-q")
    assert "done in" in loud.stderr
    assert quiet.stderr == ""
    assert "checkpoint: " in quiet.stdout
    verbose = shell("fuse", *pair, "--method", "tie", "-v", "--out", tmp_path / "x")
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.splitlines()[-1].startswith("error: ")
    assert verbose.returncode == 2


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"]])
def test_a_reader_that_stops_is_no_error(arguments):
    command = f"{' '.join(PROGRAM)} {' '.join(arguments)} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "0\n"
    assert done.stderr == ""


def test_a_full_disk_behind_stdout_is_one_line():
    done = subprocess.run(["bash", "-c", f"{' '.join(PROGRAM)} methods > /dev/full"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the result cannot be printed")
    assert done.stderr.count("\n") == 1


def test_a_closed_stdout_is_no_error():
    done = subprocess.run(["bash", "-c", f"{' '.join(PROGRAM)} methods >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_documents_are_json_whatever_they_hold(capsys):
    import numpy as np
    import torch

    numbers = {"nan": math.nan, "np": np.float32(0.5), "torch": torch.tensor(2), 3: (1, math.inf)}
    Output(json=True).result({"numbers": numbers, "path": Path("x")}, "unused")
    document = json.loads(capsys.readouterr().out)
    assert document["numbers"] == {"nan": None, "np": 0.5, "torch": 2, "3": [1, None]}
    assert document["path"] == str(Path("x").resolve())
