"""One rank and one alpha for readers without patterns, and smaller dtypes with their error."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import toys
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.metadata import Metadata
from tangora.adapters.stored import rounded, with_one_rank
from tangora.cli import app
from tangora.errors import AdapterError, ArgumentError
from tangora.fusion.fusion import fuse
from tangora.fusion.verification import verify
from tangora.updates.task_vector import LowRank

CONFIG = "adapter_config.json"


def low_rank(rank, scaling=1.0, out=6, width=5, seed=0):
    g = torch.Generator().manual_seed(seed + rank)
    return LowRank(torch.randn(out, rank, generator=g), torch.randn(rank, width, generator=g), scaling)


def readers(folder):
    """Site -> the update by each rule of readers that ignore patterns: lora_alpha / r, or by the tensor's rank."""
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / "adapter_model.safetensors")
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            a, b = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            site = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            for rank in (config["r"], len(a)):
                yield site, config["lora_alpha"] / rank * b @ a


SETS = {
    "ranks": {"up": low_rank(2), "down": low_rank(5), "mid": low_rank(3)},
    "scalings": {"up": low_rank(3, 0.7), "down": low_rank(3, 2.0), "mid": low_rank(3, -0.1)},
    "both": {"up": low_rank(2, 0.7), "down": low_rank(5, 2.0), "mid": low_rank(1, 2.0)},
    "one": {"up": low_rank(4, 0.3)},
    "zero": {"up": low_rank(2, 0.0), "down": low_rank(3)},
}


@pytest.mark.parametrize("name", SETS)
def test_every_reader_computes_a_uniform_adapter(tmp_path, name):
    updates = SETS[name]
    one = with_one_rank(Adapter(updates))
    one.save(tmp_path / "out", check=lambda adapter, folder: verify(adapter, folder).to_dict())
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    largest = max(update.rank for update in updates.values())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (largest, {}, {})
    for site, update in readers(tmp_path / "out"):
        expected = updates[site].b.double() @ updates[site].a.double() * updates[site].scaling
        torch.testing.assert_close(update, expected, rtol=1e-6, atol=1e-6)


def test_equal_scalings_and_powers_of_two_stay_exact():
    updates = {"up": low_rank(2, 2.0), "down": low_rank(5, 0.5)}
    for site, update in with_one_rank(Adapter(updates)).updates.items():
        assert torch.equal(update.b[:, : updates[site].rank] * update.scaling, updates[site].b * updates[site].scaling)
        assert not update.b[:, updates[site].rank :].any()
        assert not update.a[updates[site].rank :].any()
    same = with_one_rank(Adapter({"up": low_rank(2, 0.3), "down": low_rank(5, 0.3)}))
    assert {update.scaling for update in same.updates.values()} == {0.3}


def test_experts_embeddings_and_convolutions(tmp_path):
    updates = {
        "embed": low_rank(2, 0.5, 4, 9),
        "conv": low_rank(3, 2.0, 4, 12),
        "layer": low_rank(1, 0.25),
    }
    details = LoraDetails(None, None, frozenset({"embed"}), {"conv": (3, 2, 2)})
    with_one_rank(Adapter(updates, Metadata(), details)).save(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {len(t) for n, t in tensors.items() if "A" in n.rpartition("lora_")[2]} == {3}
    back = load(tmp_path / "out")
    for site, update in updates.items():
        torch.testing.assert_close(back.updates[site].dense(), update.dense())
    config = {"peft_type": "LORA", "target_parameters": ["experts.w"]}
    experts = {"experts[0]": low_rank(2, 0.5), "experts[1]": low_rank(2, 0.5), "layer": low_rank(4, 3.0)}
    for index, adapter in enumerate([made := Adapter(experts, details=LoraDetails(config)), with_one_rank(made)]):
        adapter.save(tmp_path / f"{index}")
        assert json.loads((tmp_path / f"{index}" / CONFIG).read_text())["r"] == 4
        for site, update in load(tmp_path / f"{index}").updates.items():
            torch.testing.assert_close(update.dense(), experts[site].dense())


def test_r_is_never_less_than_the_largest_rank(tmp_path):
    for name, updates in SETS.items():
        for config in (
            None,
            {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": {s: u.rank for s, u in updates.items()}},
        ):
            adapter = Adapter(updates, details=LoraDetails(config))
            adapter.save(tmp_path / name, overwrite=True)
            assert json.loads((tmp_path / name / CONFIG).read_text())["r"] == max(u.rank for u in updates.values())
            for site, update in load(tmp_path / name).updates.items():
                torch.testing.assert_close(update.dense(), updates[site].dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_error_of_a_dtype_is_what_it_states(tmp_path, dtype):
    bias = {"classifier.weight": torch.randn(3, 4)}
    adapter = replace(
        Adapter(SETS["both"], details=LoraDetails({"peft_type": "LORA", "modules_to_save": ["classifier"]})), whole=bias
    )
    short, errors = rounded(adapter, dtype)
    short.save(tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {dtype}
    back = load(tmp_path / "out")
    assert back.fingerprint == short.fingerprint
    assert errors.keys() == {*adapter.updates, *bias}
    for site, update in adapter.updates.items():
        exact = update.b.double() @ update.a.double() * update.scaling
        found = back.updates[site].factors()
        error = (found.b.double() @ found.a.double() * found.scaling - exact).norm() / exact.norm()
        assert float(error) == pytest.approx(errors[site], rel=1e-6)
        assert 2**-15 < errors[site] < 2**-6
    verify(adapter, tmp_path / "out", rounding=errors)
    with pytest.raises(AdapterError, match="stock peft computes another update"):
        verify(adapter, tmp_path / "out")


def test_numbers_that_a_dtype_cannot_hold():
    large = Adapter({"up": LowRank(torch.full((2, 1), 1e6), torch.ones(1, 2))})
    with pytest.raises(AdapterError, match="too large for float16"):
        rounded(large, torch.float16)
    rounded(large, torch.bfloat16)
    for change in (with_one_rank, lambda one: rounded(one, torch.float16)):
        with pytest.raises(ArgumentError, match="low-rank adapters"):
            change(Adapter({}, Metadata(kind="full")))


def run(*arguments):
    return CliRunner().invoke(app, ["fuse", *map(str, arguments)])


@pytest.fixture
def adapters(tmp_path):
    toys.lora(1).save(tmp_path / "a")
    fused = fuse([toys.lora(2), toys.lora(3)], weights=1.0)
    sites = sorted(fused.updates)
    replace(fused, updates={sites[0]: fused.updates[sites[0]]}).save(tmp_path / "b")
    return [tmp_path / "a", tmp_path / "b"]


def test_fuse_says_which_readers_compute_it_and_writes_for_all(tmp_path, adapters):
    done = run(*adapters, "-w", "0.5", "--out", tmp_path / "mixed")
    assert "only a reader of rank_pattern" in done.output
    assert "--uniform writes one rank and one alpha" in done.output
    done = run(*adapters, "-w", "0.5", "--uniform", "--out", tmp_path / "uniform")
    assert done.exit_code == 0, done.output
    assert "pattern" not in done.output
    mixed = load(tmp_path / "mixed")
    for site, update in readers(tmp_path / "uniform"):
        torch.testing.assert_close(update.float(), mixed.updates[site].dense())
    document = json.loads(run(*adapters, "-w", "0.5", "--json", "--out", tmp_path / "json").stdout)
    assert "rank_pattern" in document["notes"][0]
    assert run(*adapters, "--full", "--uniform", "--out", tmp_path / "no").exit_code != 0


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("options", [(), ("--rank", "2"), ("--uniform",)])
def test_fuse_in_another_dtype(tmp_path, adapters, method, options):
    arguments = (*adapters, "-w", "0.5", "-m", method, "--dtype", "bfloat16", *options, "--out", tmp_path / "out")
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "relative error of the dtype: at most 0.00" in done.output
    assert "verified" in done.output
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    refused = run(*adapters, "--dtype", "int8", "--out", tmp_path / "int8")
    assert isinstance(refused.exception, ArgumentError)
