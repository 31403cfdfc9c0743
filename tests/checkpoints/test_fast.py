"""Merges by compiled kernels: the same bytes and errors as without them, which is how it goes without numba."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from test_vocabulary import grown

from folders import family, read, save, tensors, tuned
from tangora.checkpoints import fast, fuse_checkpoints, select
from tangora.errors import TangoraError
from tangora.methods import methods

HAVE = [m.name for m in methods().values() if m.linear or m.after_thinning]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def kernels(monkeypatch):
    """The kernels, for inputs of any size."""
    pytest.importorskip("numba")
    monkeypatch.setattr(fast, "LEAST", 0)
    monkeypatch.setattr(fast, "LEAST_THINNED", 0)
    monkeypatch.setattr(fast, "UNCACHED", 0)
    return importlib.import_module("tangora.checkpoints.kernels")


def both(root, monkeypatch, base, folders, *arguments, **options):
    """The files, or the error, of a merge with the kernels and of one without them."""
    made = []
    for name, least in (("with", 0), ("without", 2**62)):
        monkeypatch.setattr(fast, "LEAST", least)
        monkeypatch.setattr(fast, "LEAST_THINNED", least)
        try:
            merged = fuse_checkpoints(base, folders, root / name / "out", *arguments, **options)
            assert merged.compiled == (least == 0)
            made.append({path.name: path.read_bytes() for path in sorted(merged.out.iterdir())})
        except TangoraError as error:
            made.append(str(error))
    return made


def test_the_methods_that_have_kernels():
    thinning = ["dare", "dare_ties", "magnitude_prune", "ties", "ties_per_tensor", "ties_sum"]
    assert sorted(HAVE) == sorted(["average", "task_arithmetic", *thinning])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", HAVE)
def test_a_merge_has_the_same_bytes(tmp_path, monkeypatch, method, dtype):
    base, folders, *_ = family(tmp_path, dtype=dtype)
    for number, options in enumerate([{}, {"weights": [0.3, -1.7, 1.0], "threads": 3, "block": 7, "shard_size": 700}]):
        one, other = both(tmp_path / str(number), monkeypatch, base, folders, method, **options)
        assert one == other


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("method", HAVE)
@pytest.mark.parametrize("out", ["bfloat16", "float16", "float32"])
def test_dtypes_may_differ_among_the_models_and_the_output(tmp_path, monkeypatch, method, out):
    base = tensors(dtype=torch.float16)
    folders = [save(tmp_path / f"m{i}", tuned(tensors(dtype=dtype), i)) for i, dtype in enumerate(DTYPES)]
    one, other = both(tmp_path, monkeypatch, save(tmp_path / "base", base), folders, method, 0.7, dtype=out)
    assert one == other


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("method", HAVE)
@pytest.mark.parametrize("count", [1, 2])
def test_missing_empty_unchanged_and_integer_tensors(tmp_path, monkeypatch, method, count):
    base = {
        **tensors(),
        "empty": torch.zeros(0, 4),
        "still": torch.tensor([-0.0, 0.0, 1.0], dtype=torch.float16),
        "left": torch.tensor([-0.0, 2.0]),
        "ids": torch.arange(5),
    }
    models = [{**tuned(tensors(), i), **{n: base[n] for n in ("empty", "still", "ids")}} for i in range(count)]
    models[0]["left"] = torch.tensor([-0.0, 2.5])
    folders = [save(tmp_path / f"m{i}", weights) for i, weights in enumerate(models)]
    save(tmp_path / "base", {**base, "alone": torch.tensor([-0.0, 1e-7], dtype=torch.float16)})
    missing = {"allow_missing": ["left", "alone"]}
    one, other = both(tmp_path, monkeypatch, tmp_path / "base", folders, method, -1.0, **missing)
    assert one == other


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ties_per_tensor"])
def test_rows_that_the_base_does_not_have(tmp_path, monkeypatch, method):
    base, folders, *_ = grown(tmp_path)
    one, other = both(tmp_path, monkeypatch, base, folders, method, 0.5)
    assert one == other


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ties_per_tensor", "magnitude_prune", "dare"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("which", ["base", "m1"])
def test_what_is_not_finite_gets_the_same_error(tmp_path, monkeypatch, method, value, which):
    base, folders, weights, models = family(tmp_path, 2, dtype=torch.float32)
    bad = {n: w.clone() for n, w in (weights if which == "base" else models[1]).items()}
    bad["lm_head.weight"][3, 5] = value
    save(tmp_path / which, bad, shards=1 if which == "base" else 2)
    one, other = both(tmp_path, monkeypatch, base, folders, method, 4.0)
    assert isinstance(one, str) or (method, value) == ("dare", 3e38)  # which may be dropped
    assert one == other


@pytest.mark.usefixtures("kernels")
def test_cutoffs_that_take_several_passes(tmp_path, monkeypatch):
    base, folders, *_ = family(tmp_path, dtype=torch.float32)
    monkeypatch.setattr(select, "_WAITING", 5)
    monkeypatch.setattr(select, "_BINS", 3)
    monkeypatch.setattr("tangora.checkpoints.steps._SAMPLES", {"tensor": 20, "model": 20})
    one, other = both(tmp_path, monkeypatch, base, folders, "ties_per_tensor", 1.0, density=0.37)
    assert one == other


@pytest.mark.usefixtures("kernels")
def test_a_run_that_was_killed_goes_on_without_the_kernels(tmp_path, monkeypatch):
    base, folders, *_ = family(tmp_path)
    (expected, _) = both(tmp_path, monkeypatch, base, folders, "ties", shard_size=700)
    monkeypatch.setattr(fast, "LEAST", 0)
    monkeypatch.setattr(fast, "LEAST_THINNED", 0)
    calls = iter(range(4))

    def dying(self, *arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return write(self, *arguments)

    write = fuse_checkpoints.__globals__["OutputFolder"].write
    monkeypatch.setattr(fuse_checkpoints.__globals__["OutputFolder"], "write", dying)
    with pytest.raises(KeyboardInterrupt):
        fuse_checkpoints(base, folders, tmp_path / "out", "ties", shard_size=700, threads=1)
    monkeypatch.undo()
    merged = fuse_checkpoints(base, folders, tmp_path / "out", "ties", shard_size=700)
    assert merged.kept > 0
    assert not merged.compiled
    assert {path.name: path.read_bytes() for path in merged.out.iterdir()} == expected


def test_loading_compiles_all_that_a_merge_calls(tmp_path, kernels):
    compiled = [value for value in vars(kernels).values() if hasattr(value, "signatures")]
    kernels.load()
    before = [len(function.signatures) for function in compiled]
    for dtype in DTYPES:
        base, folders, *_ = family(tmp_path / str(dtype), dtype=dtype)
        for method in ("task_arithmetic", "ties"):
            assert fuse_checkpoints(base, folders, tmp_path / str(dtype) / method, method).compiled
    assert [len(function.signatures) for function in compiled] == before


# --- when they are used


def refuse_to_load():
    raise AssertionError("numba must not be imported")


def test_small_inputs_and_what_has_no_kernel_do_without_numba(tmp_path, monkeypatch):
    base, folders, *_ = family(tmp_path, 2)
    monkeypatch.setattr(fast, "_loaded", refuse_to_load)
    assert not fuse_checkpoints(base, folders, tmp_path / "small").compiled
    monkeypatch.setattr(fast, "LEAST", 0)
    monkeypatch.setattr(fast, "LEAST_THINNED", 0)
    assert not fuse_checkpoints(base, folders, tmp_path / "method", "consensus").compiled


@pytest.mark.usefixtures("kernels")
def test_float64_is_computed_without_kernels(tmp_path):
    base, folders, *_ = family(tmp_path, 2, dtype=torch.float64)
    assert not fuse_checkpoints(base, folders, tmp_path / "out").compiled


@pytest.fixture
def anew():
    fast._loaded.cache_clear()
    yield
    fast._loaded.cache_clear()


@pytest.mark.usefixtures("anew")
def test_without_numba_everything_works(tmp_path, monkeypatch):
    monkeypatch.setattr(fast, "LEAST", 0)
    monkeypatch.setattr(fast, "LEAST_THINNED", 0)
    monkeypatch.setattr(fast, "find_spec", lambda name: None)
    base, folders, *_ = family(tmp_path, 2)
    assert not fuse_checkpoints(base, folders, tmp_path / "out", "ties").compiled
    assert read(tmp_path / "out")


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("error", [ImportError("Numba needs NumPy 2.3 or less"), OSError(28, "No space left")])
def test_a_numba_that_does_not_work_is_left_out(tmp_path, monkeypatch, kernels, error):
    def broken():
        raise error

    monkeypatch.setattr(kernels, "load", broken)
    base, folders, *_ = family(tmp_path, 2)
    assert not fuse_checkpoints(base, folders, tmp_path / "out", "ties").compiled


@pytest.mark.usefixtures("anew")
def test_a_numba_that_is_not_to_compile_is_left_out(tmp_path, monkeypatch, kernels):
    monkeypatch.setattr(kernels.numba.config, "DISABLE_JIT", 1)
    base, folders, *_ = family(tmp_path, 2)
    assert not fuse_checkpoints(base, folders, tmp_path / "out", "ties").compiled


def test_what_would_be_compiled_each_time_is_for_large_inputs(tmp_path, monkeypatch, kernels):
    monkeypatch.setattr(kernels, "CACHED", False)
    base, folders, *_ = family(tmp_path, 2)
    assert fuse_checkpoints(base, folders, tmp_path / "large").compiled
    monkeypatch.setattr(fast, "UNCACHED", 2**62)
    assert not fuse_checkpoints(base, folders, tmp_path / "small").compiled


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout


def test_without_a_folder_for_the_cache_kernels_are_compiled_in_memory():
    pytest.importorskip("numba")
    code = """
from numba.core.caching import CacheImpl, FunctionCache
for kind in (CacheImpl, *CacheImpl.__subclasses__(), FunctionCache._impl_class):
    kind._locator_classes = []
import numpy as np
from tangora.checkpoints import kernels
into = np.empty(1, np.float32)
kernels.widen(np.array([0x3FC0], np.uint16).view(np.uint8), 0, into)
print(kernels.CACHED, into[0])
"""
    assert run(code).split() == ["False", "1.5"]


def test_ties_by_kernels_does_without_torch(tmp_path):
    pytest.importorskip("numba")
    base, folders, *_ = family(tmp_path, dtype=torch.float16)
    code = f"""
import sys
from pathlib import Path
from tangora.checkpoints import fast, fuse_checkpoints
fast.LEAST = fast.LEAST_THINNED = fast.UNCACHED = 0
root = Path({str(tmp_path)!r})
models = [root / "m0", root / "m1", root / "m2"]
for method in ("task_arithmetic", "ties", "ties_per_tensor", "magnitude_prune"):
    print(fuse_checkpoints(root / "base", models, root / method, method).compiled)
print("torch" in sys.modules)
"""
    assert run(code).split() == ["True"] * 4 + ["False"]
    fuse_checkpoints(base, folders, tmp_path / "here", "ties")
    assert read(tmp_path / "ties").keys() == read(tmp_path / "here").keys()
    assert (tmp_path / "ties" / "model.safetensors").read_bytes() == (
        tmp_path / "here" / "model.safetensors"
    ).read_bytes()
