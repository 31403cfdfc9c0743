"""Whole commands that are killed, and given again: the same bytes, nothing left over; `make kills` does many more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import kills

COMMANDS = ["fuse", "merge-adapters", "merge-checkpoints", "finetune", "run"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported torch")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """A kill or two of each command, and two of it at once; in a process of its own, which forks before any thread."""
    result = tmp_path_factory.mktemp("kills") / "found.json"
    options = ["--kills", "8", "--pairs", "1", "--commands", *COMMANDS, "--result", str(result)]
    ended = subprocess.run([sys.executable, kills.__file__, *options], capture_output=True, text=True)
    assert result.is_file(), ended.stderr[-3000:]
    return json.loads(result.read_text())


def test_most_kills_come_before_the_end(found):
    """One is none if its event is beyond the last: an output without an old one has fewer events than one over it."""
    assert sum(figures["kills"]["kills"] for figures in found["commands"].values()) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_given_again_ends_as_an_undisturbed_one(found, command):
    figures = found["commands"][command]
    assert [failure for failure in found["failures"] if failure.startswith(f"{command},")] == []
    assert figures["events"] > 50
    assert figures["kills"]["trials"] >= 1
    assert figures["two_at_once"]["trials"] == (command != "run")


def test_what_is_left_over_missing_or_different_is_seen(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "out" / "training.json").write_text(json.dumps({"loss": [1.0], "seconds": len(name)}))
        (tmp_path / name / "out" / name).write_text(name)
        (tmp_path / name / "out" / "same").write_text(name)
    wanted, got = (kills.contents(tmp_path / name) for name in ("a", "b"))
    assert kills.difference(got, wanted) == "left over: out/b; missing: out/a; other bytes: out/same"
    assert kills.difference(got, got) == ""
    (tmp_path / "b" / "out" / ".out.tmp-abcdefgh").mkdir()
    assert kills.difference(kills.contents(tmp_path / "b"), got) == "left over: out/.out.tmp-abcdefgh"
