"""Factors that stay in their file: the same adapter, read when it is needed, in the memory of a site."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tangora.adapters.adapter import load
from tangora.adapters.formats.lora.lazy import LazyLowRank
from tangora.errors import AdapterError, FileError
from tangora.fusion.fusion import fuse

SITES = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in (("q", (6, 4)), ("up", (9, 4)))}


def make(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, sites=SITES, r: int = 2, **config) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for site, (out, inside) in sites.items():
        for part, shape in (("A", (r, inside)), ("B", (out, r))):
            drawn = torch.randn(shape, generator=generator).to(dtype)
            tensors[f"base_model.model.{site}.lora_{part}.weight"] = drawn
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 4, "target_modules": ["q", "up"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_it_is_the_adapter_that_is_read_at_once(tmp_path, dtype):
    folder = make(tmp_path / "a", dtype=dtype)
    here, there = load(folder), load(folder, lazily=True)
    assert all(type(update) is LazyLowRank for update in there.updates.values())
    for site, update in here.updates.items():
        other = there.updates[site]
        assert (other.shape, other.rank, other.scaling) == (update.shape, update.rank, update.scaling)
        assert torch.equal(other.b, update.b)
        assert torch.equal(other.a, update.a)
        assert other.b.dtype == update.b.dtype
        assert torch.equal((other * 2.0).dense(), (update * 2.0).dense())
    assert there.fingerprint == here.fingerprint


def test_the_fingerprint_is_of_numbers_not_of_files(tmp_path):
    half = load(make(tmp_path / "a"), lazily=True)
    tensors = {n: t.float() for n, t in load_file(tmp_path / "a" / "adapter_model.safetensors").items()}
    make(tmp_path / "b")
    save_file(tensors, tmp_path / "b" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path / "b", lazily=True).fingerprint == half.fingerprint
    tensors = {n: t + 1e-6 for n, t in tensors.items()}
    save_file(tensors, tmp_path / "b" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path / "b", lazily=True).fingerprint != half.fingerprint


@pytest.mark.parametrize(
    ("method", "options"), [("average", {}), ("average", {"rank": 3}), ("ties", {}), ("dare", {}), ("svd", {"rank": 2})]
)
def test_fused_from_folders_as_from_adapters(tmp_path, method, options):
    folders = [make(tmp_path / f"{seed}", seed) for seed in range(3)]
    here, there = fuse([load(f) for f in folders], method, **options), fuse(folders, method, **options)
    assert there.fingerprint == here.fingerprint
    assert all(type(update) is not LazyLowRank for update in there.updates.values())


def shared(folder: Path, source: Path, seed: int) -> Path:
    """An adapter with the A of another one."""
    make(folder, seed)
    of = load_file(source / "adapter_model.safetensors")
    tensors = {n: of[n] if "lora_A" in n else t for n, t in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_adapters_that_share_a_factor_share_a_tensor_of_it(tmp_path):
    first = make(tmp_path / "0")
    folders = [first, *(shared(tmp_path / f"{seed}", first, seed) for seed in (1, 2))]
    x, y, _ = (load(folder, lazily=True) for folder in folders)
    site = next(iter(x.updates))
    assert x.updates[site].a is y.updates[site].a
    assert x.fingerprint == load(folders[0]).fingerprint
    assert y.fingerprint == load(folders[1]).fingerprint
    fused = fuse(folders)
    assert all(update.rank == 2 for update in fused.updates.values())
    assert fused.fingerprint == fuse([load(folder) for folder in folders]).fingerprint


def test_a_tensor_that_was_written_to_is_read_again(tmp_path):
    first = make(tmp_path / "0")
    x, y = load(first, lazily=True), load(shared(tmp_path / "1", first, 1), lazily=True)
    site = next(iter(x.updates))
    read = x.updates[site].a
    expected = read.clone()
    read.zero_()
    assert torch.equal(y.updates[site].a, expected)


def test_equal_bytes_of_another_type_or_shape_are_other_numbers(tmp_path):
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        zeros = {
            "base_model.model.layers.0.q.lora_A.weight": torch.ones(2, 4, dtype=torch.int16).view(dtype),
            "base_model.model.layers.0.q.lora_B.weight": torch.ones(6, 2, dtype=dtype),
        }
        make(tmp_path / name, sites={"layers.0.q": (6, 4)}, target_modules=["q"])
        save_file(zeros, tmp_path / name / "adapter_model.safetensors", metadata={"format": "pt"})
    x, y = (load(tmp_path / name, lazily=True).updates["layers.0.q"].a for name in ("bf16", "fp16"))
    assert not torch.equal(x, y)


def test_a_merge_of_one_does_not_hang_on_its_file(tmp_path):
    folder = make(tmp_path / "a")
    fused = fuse([folder], weights=1.0)
    expected = load(folder).updates["layers.0.q"].dense()
    (folder / "adapter_model.safetensors").unlink()
    assert torch.equal(fused.updates["layers.0.q"].dense(), expected)


def test_an_error_of_a_number_that_is_not_finite_names_its_file(tmp_path):
    folder = make(tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.layers.1.q.lora_B.weight"][2, 1] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileError, match=r"a weight is NaN at base_model.model.layers.1.q.lora_B.weight in .*/a/"):
        fuse([folder, make(tmp_path / "b", 1)])


def test_a_rank_that_is_not_the_files(tmp_path):
    with pytest.raises(AdapterError, match="the ranks disagree"):
        load(make(tmp_path / "a", rank_pattern={"q": 7}), lazily=True)


def test_what_is_more_than_plain_factors_is_read_at_once(tmp_path):
    folder = make(tmp_path / "a", lora_bias=True)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors |= {n.replace("weight", "bias"): t[:, 0].clone() for n, t in tensors.items() if "lora_B" in n}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert load(folder, lazily=True).fingerprint == load(folder).fingerprint
    assert not any(isinstance(update, LazyLowRank) for update in load(folder, lazily=True).updates.values())


PROBE = """
import resource, sys
import tangora
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tangora.fuse(sys.argv[2:4], "average")
before = peak()
tangora.fuse(sys.argv[2 : 2 + int(sys.argv[1])], "average")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="the resident peak is in other units")
def test_the_memory_is_that_of_a_site_of_each(tmp_path):
    """Forty adapters of 10 MB, which would take 800 MB in float32 at once; all share A, so that the result is small."""
    sites = {f"layers.{i}.q": (16384, 16) for i in range(16)}
    folders = [str(make(tmp_path / f"{i}", 0, sites=sites, r=20)) for i in range(40)]
    done = subprocess.run([sys.executable, "-c", PROBE, "40", *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300 * 1024  # KiB: two threads with a site of every adapter, 105 MB
