"""Where everything goes, and that the memory stays under its formula."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from folders import save, tuned
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
import json, sys
from pathlib import Path
from tangora.checkpoints import fuse_checkpoints
from tangora.checkpoints.plan import _resident
root, out, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
models = [root / "m1", root / "m2"]
plan = fuse_checkpoints(root / "base", models, out, method, threads=2, dry_run=True)
fuse_checkpoints(root / "base", models, out, method, threads=2)
print(json.dumps([plan.memory.total, plan.memory.before, _resident(), plan.read]))
"""


def inputs(root, shape, count, dtype):
    weights = {f"layers.{i}.weight": torch.randn(shape).to(dtype) for i in range(count)}
    for folder, seed in (("base", None), ("m1", 1), ("m2", 2)):
        save(root / folder, weights if seed is None else tuned(weights, seed), config={})
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("large"), (4096, 4096), 8, torch.bfloat16)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("wide"), (64, 8192), 32, torch.float32)


def measured(root, out, method):
    """Allowed, and of this beyond what there was before; the peak; what is read: of a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROBE, str(root), str(out), method], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(out)
    allowed, before, peak, read = json.loads(done.stdout)
    return allowed, allowed - before, peak, read


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ties_per_tensor", "dare"])
def test_the_peak_stays_under_the_formula(large, tmp_path, method):
    """Inputs of more than three times what the formula allows beyond an idle process with torch."""
    allowed, beyond, peak, read = measured(large, tmp_path / "out", method)
    assert read > 3 * beyond
    assert peak <= 1.25 * allowed
    assert allowed <= 1.5 * peak, "a formula that allows anything proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["knots", "tsv_m", "iso_c", "svd", "della", "breadcrumbs", "model_stock"])
def test_the_peak_of_methods_that_see_whole_tensors(wide, tmp_path, method):
    """Tensors of so few rows that decompositions are quick."""
    allowed, beyond, peak, read = measured(wide, tmp_path / "out", method)
    assert read > beyond
    assert peak <= 1.25 * allowed
    assert allowed <= 1.5 * peak


def test_a_resident_set_is_of_this_process_alone():
    """Not of the one that started it, which may be larger."""
    ballast = bytearray(2**29)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from tangora.checkpoints.plan import _resident; print(_resident())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(ballast) // 2
