"""Where everything goes, and that the memory stays under its formula."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from folders import save
from tangora.checkpoints.align import Target
from tangora.checkpoints.plan import chunks, make_plan
from tangora.storage.header import Stored


def target(name, shape=(4,), dtype="BF16", path="x"):
    size = {"BF16": 2, "F32": 4, "I64": 8}[dtype]
    stored = Stored(name, dtype, shape, path, 0, size * 4)
    return Target(name, stored, (stored,))


def test_shards_are_filled_in_order_and_tensors_begin_aligned():
    plan = make_plan([target("a"), target("i", dtype="I64"), target("b"), target("c")], dtype=None, shard_size=40)
    assert [(p.target.name, p.shard) for p in plan.placements] == [("i", 0), ("a", 0), ("b", 1), ("c", 1)]
    assert all(p.offset % 8 == 0 for p in plan.placements if p.dtype == "I64")
    assert plan.sizes == [len(plan.headers[0]) + 40, len(plan.headers[1]) + 16]
    assert json.loads(plan.index)["weight_map"]["c"] == "model-00002-of-00002.safetensors"


def test_dtype_is_of_what_is_fused():
    plan = make_plan([target("a"), target("i", dtype="I64")], dtype="F32", shard_size=1000)
    assert {p.target.name: p.dtype for p in plan.placements} == {"a": "F32", "i": "I64"}
    assert plan.index is None


def test_chunks_cover_everything_once():
    assert chunks(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert chunks(0, 4) == []


PROBE = """
import json, os, shutil, sys
from pathlib import Path
import torch
from tangora.checkpoints import fuse_checkpoints
from tangora.checkpoints.plan import _resident
root, out, methods = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
models = [root / "m1", root / "m2"]
def measure(method):
    plan = fuse_checkpoints(root / "base", models, out, method, threads=2, dry_run=True)
    fuse_checkpoints(root / "base", models, out, method, threads=2)
    print(json.dumps([method, plan.memory.total, plan.memory.before, _resident(), plan.read]), flush=True)
for method in methods:
    child = os.fork()  # its peak begins at what it shares with this process, which has imported torch, and no more
    if child == 0:
        measure(method)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, method
    shutil.rmtree(out)
"""


def inputs(root, shape, count, dtype):
    first, noise = torch.randn(shape), torch.randn(shape) / 100
    for folder, change in (("base", torch.zeros(shape)), ("m1", noise), ("m2", noise.flip(0, 1))):
        weights = {f"layers.{i}.weight": (first.roll(i, -1) + change).to(dtype) for i in range(count)}
        save(root / folder, weights, config={})
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("large"), (4096, 4096), 4, torch.bfloat16)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("wide"), (32, 8192), 64, torch.float32)


def measured(root, out, *methods):
    """For each method: allowed; of this beyond what there was before; the peak; what is read. In a process each."""
    command = [sys.executable, "-c", PROBE, str(root), str(out), *methods]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        method, allowed, before, peak, read = json.loads(line)
        found[method] = (allowed, allowed - before, peak, read)
    assert list(found) == list(methods)
    return found


@pytest.mark.slow
def test_the_peak_stays_under_the_formula(large, tmp_path):
    """Inputs of more than twice what the formula allows beyond an idle process with torch."""
    found = measured(large, tmp_path / "out", "task_arithmetic", "ties", "ties_per_tensor", "dare")
    for method, (allowed, beyond, peak, read) in found.items():
        assert read > 2 * beyond, method
        assert peak <= 1.25 * allowed, method
        assert allowed <= 1.75 * peak, f"{method}: a formula that allows anything proves nothing"


@pytest.mark.slow
def test_the_peak_of_methods_that_see_whole_tensors(wide, tmp_path):
    """Tensors of so few rows that decompositions are quick."""
    methods = ("knots", "tsv_m", "iso_c", "svd", "della", "breadcrumbs", "model_stock")
    for method, (allowed, beyond, peak, read) in measured(wide, tmp_path / "out", *methods).items():
        assert read > beyond, method
        assert peak <= 1.25 * allowed, method
        assert allowed <= 1.75 * peak, method


def test_a_resident_set_is_of_this_process_alone():
    """Not of the one that started it, which may be larger."""
    ballast = bytearray(2**29)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from tangora.checkpoints.plan import _resident; print(_resident())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(ballast) // 2
