"""``tangora merge``: adapters into a base, checkpoints into one, by what the folders hold."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import toys
from folders import family, read, save
from tangora.cli import app
from tangora.errors import ArgumentError, FileError


def run(*arguments):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


@pytest.fixture
def adapters(tmp_path):
    folders = [tmp_path / f"a{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        toys.lora(seed).save(folder)
    return folders


@pytest.fixture
def base(tmp_path):
    return save(tmp_path / "base", toys.toy().state_dict(), config={})


def test_checkpoints_as_with_full(tmp_path):
    origin, folders, _, _ = family(tmp_path)
    done = run(origin, *folders, "--method", "ties", "-w", "0.5", "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "fused 3 models by ties over 7 tensors" in done.output
    assert "weights: 0.5 each\n" in done.output
    old = CliRunner().invoke(
        app, ["fuse", *map(str, [origin, *folders]), "--full", "--method", "ties", "--weights", "0.5", "--out",
              str(tmp_path / "old")]
    )  # fmt: skip
    assert old.exit_code == 0, old.output
    new, before = read(tmp_path / "new"), read(tmp_path / "old")
    assert all(torch.equal(new[name], before[name]) for name in before)


def test_a_single_adapter_is_merged_whole(tmp_path, adapters, base):
    done = run(adapters[0], "--base", base, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "weights: 1 (a single adapter is merged whole)" in done.output
    model = toys.toy()
    toys.lora(1).apply_(model)
    for name, tensor in read(tmp_path / "out").items():
        torch.testing.assert_close(tensor, model.state_dict()[name])


def test_several_adapters_have_the_methods_weight_and_a_single_one_is_whole(tmp_path, adapters, base):
    done = run(*adapters, "--base", base, "--out", tmp_path / "out")
    assert "weights: 0.3 each (the default of task_arithmetic)" in done.output
    one = ["fuse", str(adapters[0]), "--base", str(base), "--full", "--out", str(tmp_path / "one")]
    assert "weights: 1 (a single adapter is merged whole)" in CliRunner().invoke(app, one).output
    adapter = ["fuse", str(adapters[0]), "--out", str(tmp_path / "adapter")]
    assert "weights: 1 (a single adapter is merged whole)" in CliRunner().invoke(app, adapter).output
    given = ["fuse", str(adapters[0]), "--weights", "0.25", "--out", str(tmp_path / "given")]
    assert "weights: 0.25\n" in CliRunner().invoke(app, given).output


def test_json(tmp_path, adapters, base):
    done = run(*adapters, "--base", base, "--weights=0.5,-1", "--json", "--out", tmp_path / "out")
    document = json.loads(done.stdout)
    assert document["weights"] == [0.5, -1.0]
    assert document["parents"] == ["a1", "a2"]
    assert document["checkpoint"] == str((tmp_path / "out").resolve())
    assert document["verified"]["compared"] > 0
    assert document["memory"]["total"] > 0


def refused(kind, words, *arguments):
    done = run(*arguments)
    assert isinstance(done.exception, kind), done.output
    for word in words:
        assert word in str(done.exception)


def test_what_does_not_go_together(tmp_path, adapters, base):
    out = ["--out", tmp_path / "out"]
    refused(ArgumentError, ["adapters are merged into their base", "--base"], *adapters, *out)
    refused(ArgumentError, ["in one merge", "a1 is an adapter", f"--base {base}"], base, *adapters, *out)
    refused(ArgumentError, ["Merge adapters in one command"], adapters[0], base, base, *out)
    refused(ArgumentError, ["nothing to merge with the base"], base, *out)
    refused(FileError, ["no such folder", "nowhere"], tmp_path / "nowhere", base, *out)
    assert not (tmp_path / "out").exists()
