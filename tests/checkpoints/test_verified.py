"""A checkpoint of adapters onto a base is read again before it appears: right, or an error and nothing written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import toys
import zoo
from folders import read, save
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.checkpoints import fuse_checkpoints, onto_base, verified
from tangora.checkpoints.output import OutputFolder
from tangora.cli.merge import merged_lines
from tangora.errors import FileError
from tangora.fusion.sources import SourceAdapter
from tangora.methods import get, methods
from tangora.updates.task_vector import LowRank

DELTA = [m.name for m in methods().values() if m.statistics is None and (m.granularity != "model" or m.cutoff)]


def made(root, method="task_arithmetic", dtype=torch.float32, count=3):
    weights = {k: v.to(dtype) for k, v in toys.toy().state_dict().items()}
    base = save(root / "base", weights, config={"model_type": "toy"})
    folders = []
    for seed in range(1, (get(method).tasks or count) + 1):
        toys.lora(seed, rank=seed).save(root / f"a{seed}")
        folders.append(root / f"a{seed}")
    return base, folders


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", DELTA)
def test_every_method_and_dtype(tmp_path, method, dtype):
    base, folders = made(tmp_path, method, dtype)
    checked = fuse_checkpoints(base, folders, tmp_path / "out", method).verified
    changed = {n for n, t in read(tmp_path / "out").items() if not torch.equal(t, read(base)[n])}
    assert changed <= {"up.weight", "down.weight"}
    assert (checked.compared, checked.equal) == (2, len(read(base)) - 2)
    assert (checked.unknown, checked.sampled, checked.read) == (0, 0, 0)
    assert checked.linear == (get(method).linear or get(method).mixing is not None)


SITES = {"target_modules": ["embed", "plane", "up", "turned"], "alpha_pattern": {"up": 3, "u.*": 100}}


@pytest.mark.parametrize(
    ("space", "settings", "read"),
    [
        ("delta", {**SITES, "use_rslora": True}, 0),
        ("core", SITES, 4),
        ("delta", {"target_modules": ["up", "head"], "use_dora": True}, 2),
        ("delta", {"target_modules": ["up", "head"], "lora_bias": True}, 2),
        ("delta", {"target_modules": ["up"], "target_parameters": ["experts.gate_up"]}, 2),
    ],
)
def test_conventions(tmp_path, space, settings, read):
    base = zoo.save_base(tmp_path / "base")
    folders = [zoo.write(tmp_path / f"a{i}", i, **settings) for i in (1, 2)]
    checked = fuse_checkpoints(base, folders, tmp_path / "out", weights=0.5, space=space).verified
    assert (checked.read, checked.unknown) == (read, 0)
    assert checked.compared >= 2
    assert ("fused in memory" in checked.summary()) == (space == "core")


def test_factors_from_the_file_are_what_peft_computes(tmp_path):
    settings = {"alpha_pattern": {"up": 3}, "rank_pattern": {"line": 2, "embed": 5}, "use_rslora": True}
    folder = zoo.write(tmp_path / "a", target_modules=["embed", "line", "up", "square"], **settings)
    differences = zoo.differences(folder)
    source = SourceAdapter(load(folder), folder)
    for site in ("embed", "line", "up", "square"):
        b, a = source.factors(site)
        expected = differences[f"{site}.weight"].flatten(1)
        found = b @ a if site in ("line", "up") else (b @ a).T
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)  # both in float64, of the same factors


def test_values_saved_whole_and_a_common_start(tmp_path):
    base = zoo.save_base(tmp_path / "base")
    folder = zoo.write(tmp_path / "a", target_modules=["up"], modules_to_save=["head"])
    checked = fuse_checkpoints(base, [folder], tmp_path / "out").verified
    assert (checked.compared, checked.read) == (3, 2)
    save(tmp_path / "toy", toys.toy().state_dict(), config={})
    g = torch.Generator().manual_seed(1)
    start = {"up": LowRank(torch.randn(10, 2, generator=g), torch.randn(2, 6, generator=g), 1.0)}
    for seed in (1, 2):
        moved = LowRank(start["up"].b + 0.1 * seed, start["up"].a, 1.0)
        Adapter({"up": moved}, Metadata(base=BaseInfo(model="toy")), LoraDetails(initial=start)).save(
            tmp_path / f"s{seed}"
        )
    for method in ("task_arithmetic", "ties"):
        folders = [tmp_path / "s1", tmp_path / "s2"]
        checked = fuse_checkpoints(tmp_path / "toy", folders, tmp_path / method, method).verified
        assert (checked.compared, checked.read) == (1, 1)


def test_sums_that_cancel_may_be_in_another_order(tmp_path, monkeypatch):
    """Products of 1000 leave 1. In float32 that is known to 1e-4, and the digits after it are the order's."""
    g = torch.Generator().manual_seed(1)
    large, small, row = (torch.randn(shape, generator=g) for shape in ((10, 1), (10, 1), (1, 6)))
    update = LowRank(torch.cat([small, 1000 * large, -1000 * large], 1), row.repeat(3, 1), 1.0)
    start = {"up": LowRank(torch.ones(10, 1), torch.ones(1, 6), 1.0)}  # with one it is no plain factors in a file
    Adapter({"up": update}, Metadata(base=BaseInfo(model="toy")), LoraDetails(initial=start)).save(tmp_path / "a")
    once = verified._read

    def rows(self, first, last):
        factors = self.update.factors()
        b, a = factors.b[first:last], factors.a
        return sum(b[:, k : k + 1] * a[k : k + 1] for k in range(len(a)))

    def again(part, spans, **options):
        factors = part.update.factors()
        flipped = LowRank(factors.b.flip(1), factors.a.flip(0), factors.scaling)
        return once(replace(part, update=flipped), spans, **options)

    monkeypatch.setattr(onto_base.OrientedUpdate, "rows", rows)
    monkeypatch.setattr(verified, "_read", again)
    save(tmp_path / "toy", toys.toy().state_dict(), config={})
    checked = fuse_checkpoints(tmp_path / "toy", [tmp_path / "a"], tmp_path / "out", weights=1.0).verified
    assert (checked.compared, checked.read) == (1, 1)


def refused(root, message, *arguments, **options):
    with pytest.raises(FileError, match=message):
        fuse_checkpoints(*arguments, root / "out", **options)
    assert not (root / "out").exists()
    assert not list(root.glob(".out*"))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "iso_c"])
@pytest.mark.parametrize(("name", "message"), [("up.weight", "not the base plus"), ("embed.weight", "no adapter")])
def test_a_corrupt_file_is_an_error(tmp_path, monkeypatch, method, name, message, dtype):
    base, folders = made(tmp_path)
    write = OutputFolder.write

    def corrupt(self, placement, start, data):
        if placement.target.name == name:
            data = bytearray(data)
            data[-1] ^= 0x40  # of the exponent
            data = memoryview(bytes(data))
        write(self, placement, start, data)

    monkeypatch.setattr(OutputFolder, "write", corrupt)
    refused(tmp_path, f"{message}.*{name}", base, folders, method=method, dtype=dtype)
    assert fuse_checkpoints(base, folders, tmp_path / "out", method, dtype=dtype, verify=False).verified is None


@pytest.mark.parametrize(("method", "factor"), [("average", 1.001), ("average", -1.0), ("knots", 1.05), ("ties", 1.05)])
def test_a_wrong_product_is_an_error(tmp_path, monkeypatch, method, factor):
    base, folders = made(tmp_path)
    rows = onto_base.OrientedUpdate.rows
    monkeypatch.setattr(onto_base.OrientedUpdate, "rows", lambda self, a, b: rows(self, a, b) * factor)
    refused(tmp_path, "it is not the base plus the fused adapters, got .* of its norm", base, folders, method=method)


def test_an_update_that_is_lost_is_an_error(tmp_path, monkeypatch):
    base, folders = made(tmp_path)
    monkeypatch.setattr("tangora.checkpoints.fuser.Fuser._weighted", lambda s, t, a, b, base, lane: base * 0)
    refused(tmp_path, "it is not the base plus the fused adapters", base, folders)


def test_a_tensor_that_is_missing_is_an_error(tmp_path, monkeypatch):
    base, folders = made(tmp_path)
    monkeypatch.setattr("tangora.checkpoints.verified.tensors_in", lambda folder: {})
    refused(tmp_path, "do not hold the tensors", base, folders)


def test_an_entry_that_a_rounding_moves_across_a_threshold_is_no_error(tmp_path):
    """Entry (0, 0) is 1 + 2⁻³⁰ and −1: in float32 nothing is elected there, and it is a tenth of the norm."""
    base = save(tmp_path / "base", {"up.weight": torch.ones(12, 12)}, config={"model_type": "toy"})
    g = torch.Generator().manual_seed(0)
    for name, first in (("a1", [1.0, 2.0**-15]), ("a2", [-1.0, 0.0])):
        b, a = torch.randn(12, 2, generator=g), torch.randn(2, 12, generator=g)
        b[0], a[:, 0] = torch.tensor(first), torch.tensor([1.0, 2.0**-15])
        Adapter({"up": LowRank(b, a)}, Metadata(base=BaseInfo(model="toy"))).save(tmp_path / name)
    folders = [tmp_path / "a1", tmp_path / "a2"]
    assert fuse_checkpoints(base, folders, tmp_path / "out", "ties", density=1.0).verified.compared == 1
    assert abs(read(tmp_path / "out")["up.weight"][0, 0] - 1.0) < 1e-6


@pytest.mark.parametrize(("method", "sampled", "unknown"), [("task_arithmetic", 2, 0), ("ties", 2, 0), ("dare", 0, 1)])
def test_large_tensors_are_sampled(tmp_path, monkeypatch, method, sampled, unknown):
    monkeypatch.setattr(verified, "_ENTRIES", 32)
    monkeypatch.setattr(verified, "_BLOCK", 8)
    monkeypatch.setattr(verified, "_RUNS", 2)
    base, folders = made(tmp_path)
    merged = fuse_checkpoints(base, folders, tmp_path / "out", method)
    assert (merged.verified.sampled, merged.verified.unknown) == (sampled, unknown)
    (line,) = [line for line in merged_lines(merged, False) if line.startswith("verified")]
    assert "tensors equal the base's, bit for bit" in line
    assert ("in sampled rows" in line) == bool(sampled)
    assert ("were not recomputed" in line) == bool(unknown)
    assert ("every entry up to its rounding" in line) == (method == "task_arithmetic")


def test_checkpoints_have_no_adapters_to_be_compared_with(tmp_path):
    base, _ = made(tmp_path)
    model = save(tmp_path / "m", {k: v + 1 for k, v in read(base).items()}, config={"model_type": "toy"})
    assert fuse_checkpoints(base, [model], tmp_path / "out").verified is None
