"""``tangora fuse --full``."""

from __future__ import annotations

import sys

import pytest

import toys
from folders import family, read, save
from tangora.cli import commands as cli


@pytest.fixture
def fuse(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tangora", "fuse", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_checkpoints(fuse, tmp_path):
    base, folders, weights, _ = family(tmp_path)
    options = ["--full", "--method", "ties", "--set", "density=0.3", "--weights", "0.5", "--shard-size", "1KB"]
    code, out, err = fuse(base, *folders, *options, "--threads", 2, "--dtype", "float32", "--out", tmp_path / "out")
    assert code == 0, err
    assert "fused 3 models by ties over 7 tensors" in out
    assert read(tmp_path / "out").keys() == weights.keys()
    code, out, err = fuse(base, *folders, "--full", "--out", tmp_path / "out")
    assert (code, "the output exists" in err) == (2, True)


def test_a_dry_run(fuse, tmp_path):
    base, folders, _, _ = family(tmp_path)
    code, out, _ = fuse(base, *folders, "--full", "--dry-run", "--out", tmp_path / "out")
    assert code == 0
    assert "would fuse 3 models" in out
    assert "peak memory with" in out
    assert not (tmp_path / "out").exists()


def test_adapters_onto_a_base(fuse, tmp_path):
    base = save(tmp_path / "base", toys.toy().state_dict(), config={})
    for seed in (1, 2):
        toys.lora(seed).save(tmp_path / f"a{seed}")
    code, out, err = fuse(tmp_path / "a1", tmp_path / "a2", "--base", base, "--full", "--out", tmp_path / "out")
    assert code == 0, err
    assert "fused 2 models by task_arithmetic" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--base", "x"], "no such folder at x"),
        (["--threads", "2"], "--threads"),
        (["--dry-run"], "--dry-run"),
        (["--allow-missing", "x"], "--allow-missing"),
        (["--full", "--rank", "3"], "has no rank"),
        (["--full"], "nothing to fuse with the base"),
        (["--full", "--data", "m0=rows.csv"], "learns from no rows"),
    ],
)
def test_options_that_do_not_go_together(fuse, tmp_path, arguments, words):
    base, _, _, _ = family(tmp_path, 1)
    code, _, err = fuse(base, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()


def test_an_adapter_where_the_base_should_be(fuse, tmp_path):
    for seed in (1, 2):
        toys.lora(seed).save(tmp_path / f"a{seed}")
    code, _, err = fuse(tmp_path / "a1", tmp_path / "a2", "--full", "--out", tmp_path / "out")
    assert code == 2
    assert "--base BASE" in err
