"""What a rank costs is printed: rank, size, and what a smaller one would leave; ``--rank auto``."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

import toys
from tangora.adapters.adapter import load
from tangora.cli import app
from tangora.errors import ArgumentError
from tangora.fusion.fusion import fuse


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for seed in (1, 2):
        toys.lora(seed, rank=3).save(folder / f"a{seed}")
    return [folder / "a1", folder / "a2"]


def run(*arguments):
    done = CliRunner().invoke(app, ["fuse", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def errors_at(adapter, rank):
    """By LAPACK: the relative error over all sites."""
    values = [torch.linalg.svdvals(update.dense().double()) for update in adapter.updates.values()]
    return (sum(float(s[rank:].square().sum()) for s in values) / sum(float(s.square().sum()) for s in values)) ** 0.5


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_the_line_and_the_document(tmp_path, pair, method):
    arguments = [*pair, "--method", method, "--weights", "0.5"]
    line = next(x for x in run(*arguments, "-o", tmp_path / "a").output.splitlines() if x.startswith("rank "))
    size = (tmp_path / "a/adapter_model.safetensors").stat().st_size
    largest = max((folder / "adapter_model.safetensors").stat().st_size for folder in pair)
    assert f"{size / largest:.2g} x the largest input" in line
    shown = {int(r): float(e) for r, e in re.findall(r"--rank (\d+) would leave an error of ([\d.e-]+)", line)}
    assert 3 in shown
    document = json.loads(run(*arguments, "--json", "-o", tmp_path / "b").stdout)
    assert document["size"] == size
    exact = fuse(pair, method, 0.5)
    for rank, error in document["smaller_ranks"].items():
        assert error == pytest.approx(errors_at(exact, int(rank)), rel=1e-5)
        assert shown[int(rank)] == pytest.approx(error, rel=0.05)


def test_a_rank_that_is_not_needed(tmp_path, pair):
    """Twice the same adapter with other factors: rank 6, of which 3 suffice."""
    one = load(pair[0])
    moved = {site: type(u)(u.b * 2, u.a / 2, u.scaling) for site, u in one.updates.items()}
    type(one)(moved, one.metadata).save(tmp_path / "again")
    done = run(pair[0], tmp_path / "again", "--weights", "0.5", "-o", tmp_path / "out")
    assert "--rank 3 would leave no error" in done.output


def test_a_cut_result_counts_what_was_cut(tmp_path, pair):
    exact = fuse(pair, weights=0.5)
    document = json.loads(run(*pair, "-w", "0.5", "--rank", "4", "--json", "-o", tmp_path / "out").stdout)
    assert document["rank"] == 4
    assert document["truncation_error"] == pytest.approx(errors_at(exact, 4), rel=1e-5)
    for rank, error in document["smaller_ranks"].items():
        assert error == pytest.approx(errors_at(exact, int(rank)), rel=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_auto_is_the_least_rank_under_the_bound(tmp_path, pair, method):
    done = run(*pair, "-m", method, "-w", "0.5", "--rank", "auto", "--error", "0.3", "--json", "-o", tmp_path / "out")
    document, exact, read = json.loads(done.stdout), fuse(pair, method, 0.5), load(tmp_path / "out")
    assert document["error_bound"] == 0.3
    assert read.metadata.fused.error_bound == 0.3
    total = lost = 0.0
    for site, update in read.updates.items():
        values = torch.linalg.svdvals(exact.updates[site].dense().double())
        errors = [float(values[rank:].norm() / values.norm()) for rank in range(len(values) + 1)]
        assert update.rank == next(rank for rank, error in enumerate(errors) if error <= 0.3)
        assert read.metadata.fused.site_errors[site] == pytest.approx(errors[update.rank], abs=1e-6)
        total, lost = total + float(values.square().sum()), lost + float(values[update.rank :].square().sum())
    assert document["truncation_error"] == pytest.approx((lost / total) ** 0.5, abs=1e-6)
    assert document["verified"] is not None
    assert "the least with an error of at most 0.3" in (tmp_path / "out/README.md").read_text()


def test_bad_ranks(tmp_path, pair):
    for options, words in {
        ("--rank", "many"): "auto, or a whole number",
        ("--rank", "0"): "auto, or a whole number",
        ("--error", "0.1"): "a bound for --rank auto",
        ("--rank", "auto", "--error", "1.5"): "between 0.000001 and 1",
    }.items():
        done = CliRunner().invoke(app, ["fuse", *map(str, pair), *options, "-o", str(tmp_path / "out")])
        assert isinstance(done.exception, ArgumentError)
        assert words in str(done.exception)
    assert not (tmp_path / "out").exists()
