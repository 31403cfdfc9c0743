"""What goes to stdout and what to stderr, as a shell sees it."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import toys
from forks import program
from tangora.cli.exits import end
from tangora.cli.output import Output

PROGRAM = [sys.executable, "-m", "tangora"]


def shell(*arguments):
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True)


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
    refused = program("fuse", *pair, "--json", "--out", tmp_path / "fused")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: the output exists")


def test_names_are_printed_as_they_are(pair, tmp_path):
    done = program("fuse", *pair, "--weights=0.5,1", "--out", tmp_path / "[bold]x")
    assert "weights: [red]a1 0.5, [red]a2 1" in done.stdout
    assert f"adapter: {tmp_path / '[bold]x'}" in done.stdout
    assert "\x1b" not in done.stdout


def test_quiet_leaves_the_result_and_verbose_shows_the_traceback(pair, tmp_path):
    base = tmp_path / "base"
    from folders import save

    save(base, toys.toy().state_dict(), config={})
    loud = program("merge", *pair, "--base", base, "--out", tmp_path / "loud")
    quiet = program("merge", *pair, "--base", base, "--out", tmp_path / "quiet", "-q")
    assert "done in" in loud.stderr
    assert quiet.stderr == ""
    assert "checkpoint: " in quiet.stdout
    verbose = program("fuse", *pair, "--method", "tie", "-v", "--out", tmp_path / "x")
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.splitlines()[-1].startswith("error: ")
    assert verbose.returncode == 2


def ends(command, buffered=True):
    """The exit code of the program before ``| true`` or another end of a line of bash, and what stands on stderr."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    line = f"{shlex.join(PROGRAM)} {command}; echo ${{PIPESTATUS[0]}} >&3"
    with tempfile.TemporaryFile("w+") as codes:
        done = subprocess.run(
            ["bash", "-c", f"exec 3>&{codes.fileno()}; {line}"],
            capture_output=True,
            text=True,
            env=environment,
            pass_fds=[codes.fileno()],
        )
        codes.seek(0)
        return int(codes.read()), done.stderr


PRINTING = ["-h", "--version", "fuse -h", "methods", "methods --json", "--show-completion bash"]


@pytest.mark.parametrize(
    ("arguments", "buffered"), [*((one, True) for one in PRINTING), ("-h", False), ("--show-completion bash", False)]
)
def test_a_reader_that_stops_is_no_error(arguments, buffered):
    assert ends(f"{arguments} | true", buffered) == (0, "")


def test_an_error_that_nobody_reads_is_still_one():
    assert ends("fuse --nonsense 2>&1 | true") == (2, "")


def test_a_pipe_that_breaks_elsewhere_is_a_bug(capsys):
    def command():
        try:
            raise BrokenPipeError("a worker is gone")
        except BrokenPipeError:
            sys.exit(1)  # as typer does

    with pytest.raises(SystemExit) as stop:
        end(command)
    assert stop.value.code == 1
    assert "BrokenPipeError: a worker is gone" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["-h", "methods"])
def test_a_full_disk_behind_stdout_is_one_line(arguments):
    code, said = ends(f"{arguments} > /dev/full")
    assert code == 2
    assert said.startswith("error: the result cannot be printed")
    assert said.count("\n") == 1


def test_a_closed_stdout_is_no_error():
    assert ends("-h >&-") == (0, "")


def test_documents_are_json_whatever_they_hold(capsys):
    import numpy as np
    import torch

    numbers = {"nan": math.nan, "np": np.float32(0.5), "torch": torch.tensor(2), 3: (1, math.inf)}
    Output(json=True).result({"numbers": numbers, "path": Path("x")}, "unused")
    document = json.loads(capsys.readouterr().out)
    assert document["numbers"] == {"nan": None, "np": 0.5, "torch": 2, "3": [1, None]}
    assert document["path"] == str(Path("x").resolve())
