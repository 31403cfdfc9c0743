"""What is written is read by stock peft and compared; a wrong file is found, and does not appear."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import toys
from tangora.adapters import comparison
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.metadata import Metadata
from tangora.cli.fuse import FuseOptions
from tangora.cli.fuse import fuse as fuse_command
from tangora.cli.output import Output
from tangora.errors import AdapterError
from tangora.fusion import engine, reevaluation, verification
from tangora.fusion.fusion import fuse
from tangora.fusion.sources import SourceAdapter
from tangora.fusion.stacks import stacked
from tangora.fusion.verification import verify
from tangora.methods import get, methods
from tangora.updates import update as updates
from tangora.updates.task_vector import Dense, LowRank
from tangora.updates.truncation import whole_svd


def command(folders, out, method, **options):
    """What `tangora fuse` does."""
    fuse_command(FuseOptions(adapters=list(folders), out=out, method=method, **options), Output())


@pytest.fixture
def pair(tmp_path):
    folders = []
    for seed in (1, 2):
        shapes = {"up": (10, 6), "deep.down": (6, 10), "embed": (6, 11)}
        toys.lora(seed, rank=seed, shapes=shapes).save(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    return folders


def every_kind() -> Adapter:
    """Linear, embedding, convolution, experts twice on one module, a head."""
    g = torch.Generator().manual_seed(1)

    def low(out, inside, rank=2):
        return LowRank(torch.randn(out, rank, generator=g), torch.randn(rank, inside, generator=g), 0.7)

    updates = {"a.up": low(5, 4, 3), "embed": low(4, 9), "conv": low(3, 8), "wide": low(7, 27)}
    updates |= {f"moe.experts[{e}]": low(4, 6) for e in range(3)}
    updates |= {f"moe.experts.base_layer[{e}]": low(3, 4, 1 + e) for e in range(3)}
    config = {"peft_type": "LORA", "modules_to_save": ["head"], "task_type": "SEQ_CLS"}
    config |= {"target_parameters": ["experts.first", "experts.second"]}
    kernels = {"conv": (2, 4), "wide": (3, 3, 3)}
    details = LoraDetails(config, None, frozenset({"embed"}), kernels)
    return Adapter(updates, Metadata(), details, {"head.weight": torch.ones(2, 3)})


def test_every_kind_of_site():
    found = every_kind().verify()
    assert (found.sites, found.probed, found.reference) == (10, 0, "result")
    assert found.error < 1e-6
    biases = {"up": toys.lora(1).updates["up"], "up.bias": Dense(torch.ones(10))}
    assert Adapter(biases).verify().error < 1e-6


def test_dense_results_and_large_sites(monkeypatch, pair):
    dense = Adapter({"up": Dense(torch.randn(10, 6, generator=torch.Generator().manual_seed(0)))})
    assert dense.verify().error < 1e-6
    monkeypatch.setattr(comparison, "_ENTRIES", 0)
    for adapter in (every_kind(), dense):
        found = adapter.verify()
        assert found.probed == found.sites
        assert found.error < 1e-6


def test_full_adapters_have_nothing_for_peft():
    with pytest.raises(AdapterError, match="kind full"):
        Adapter({"w": Dense(torch.ones(2))}, Metadata(kind="full")).verify()


@pytest.mark.parametrize("entries", [0, 2**18])
def test_errors_are_found_at_their_site(tmp_path, pair, monkeypatch, entries):
    monkeypatch.setattr(comparison, "_ENTRIES", entries)
    adapter = fuse(pair, weights=0.5)
    adapter.save(tmp_path / "out")
    assert verify(adapter, tmp_path / "out").error < 1e-6
    path = tmp_path / "out/adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.deep.down.lora_B.weight"][3, 0] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"another update, by .* of its norm at deep\.down"):
        verify(adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": 3}, "another update"),
        ({"rank_pattern": {}}, "does not load it"),
        ({"target_modules": ["up"]}, None),
    ],
)
def test_a_wrong_configuration_is_found(tmp_path, pair, change, message):
    adapter = fuse(pair, weights=0.5)
    adapter = replace(adapter, updates={**adapter.updates, "up": toys.lora(3, 5).updates["up"]})
    adapter.save(tmp_path / "out")
    path = tmp_path / "out/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        verify(adapter, tmp_path / "out")


def test_a_lost_head_is_found(tmp_path):
    adapter = every_kind()
    adapter.save(tmp_path / "out")
    other = replace(adapter, whole={"head.weight": torch.zeros(2, 3)})
    with pytest.raises(AdapterError, match=r"another update.*head\.weight"):
        verify(other, tmp_path / "out")


@pytest.mark.parametrize("method", ["task_arithmetic", "average", "ties", "dare", "tsv_m", "slerp", "pico+iso_c"])
def test_the_command_verifies(tmp_path, pair, capsys, method):
    command(pair, tmp_path / "out", method)
    assert "verified in" in capsys.readouterr().out
    recorded = load(tmp_path / "out").metadata.verified
    linear = method in ("task_arithmetic", "average")
    assert recorded["reference"] == ("parents" if linear else "result")
    assert recorded["again"] == (0 if linear else 3)
    assert linear or recorded["again_error"] < 1e-5
    assert recorded["error"] < 1e-5
    assert recorded["identity"] < 1e-6
    assert (recorded["gauge"] is None) == (method == "dare")
    card = (tmp_path / "out/README.md").read_text()
    assert "## Verified" in card
    assert f"{recorded['error']:.1e}" in card


def test_the_bits_do_not_depend_on_the_verification(tmp_path, pair):
    for name, verify_it in (("a", True), ("b", False), ("c", True)):
        command(pair, tmp_path / name, "ties", verify=verify_it)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert len({(tmp_path / n / file).read_bytes() for n in "abc"}) == 1
    assert (tmp_path / "a/tangora.json").read_bytes() == (tmp_path / "c/tangora.json").read_bytes()
    assert load(tmp_path / "b").metadata.verified is None


def test_a_sum_that_is_none_does_not_appear(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(engine.Engine, "linear", lambda self, *arguments: self.coordinates.vectors[0])
    with pytest.raises(AdapterError, match="another update"):
        command(pair, tmp_path / "out", "average")
    assert not (tmp_path / "out").exists()


ALL = [name for name in methods() if get(name).statistics is None]


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("rank", [None, 2])
def test_every_method_is_evaluated_again(tmp_path, pair, method, rank):
    fused = fuse(pair, method, rank=rank)
    fused.save(tmp_path / "out")
    found = verify(fused, tmp_path / "out", [SourceAdapter(load(folder)) for folder in pair])
    assert found.again == (0 if get(method).linear and rank is None else 3)
    assert found.again == 0 or found.again_error < 1e-4
    summed = get(method).linear or get(method).mixing is not None
    assert found.reference == ("parents" if summed and rank is None else "result")


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
def test_factors_and_weights_of_sites_are_evaluated_again(tmp_path, method):
    parents = [toys.lora(seed, initial=True) for seed in (1, 2)]
    weights = {site: [0.5, 0.2 + i] for i, site in enumerate(parents[0].updates)}
    fused = fuse(parents, method, weights, space="factors")
    fused.save(tmp_path / "out")
    found = verify(fused, tmp_path / "out", [SourceAdapter(adapter) for adapter in parents])
    assert found.again == len(fused.updates)
    assert found.again_error < 1e-4


def test_tasks_in_another_order_are_found(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(engine, "stacked", lambda updates, memory=None: stacked(updates, memory).flip(0))
    with pytest.raises(AdapterError, match=r"evaluated again, the fusion differs by .* of its norm"):
        command(pair, tmp_path / "out", "ties", weights="0.2,0.9")
    assert not (tmp_path / "out").exists()


def test_an_entry_that_a_rounding_moves_across_a_threshold_is_no_error(tmp_path):
    """Entry (0, 0) is 1 + 2⁻³⁰ and −1: in float32 nothing is elected there, and it is a tenth of the norm."""
    parents = []
    for seed, first in ((1, [1.0, 2.0**-15]), (2, [-1.0, 0.0])):
        parent = toys.lora(seed, shapes={"up": (12, 12), "deep": (3, 4)}, scaling=1.0)
        update = parent.updates["up"]
        update.b[0], update.a[:, 0] = torch.tensor(first), torch.tensor([1.0, 2.0**-15])
        parents.append(parent)
    fused = fuse(parents, "ties", density=1.0)
    assert abs(fused.updates["up"].dense()[0, 0]) < 1e-6
    fused.save(tmp_path / "out")
    found = verify(fused, tmp_path / "out", [SourceAdapter(adapter) for adapter in parents])
    assert 0.01 < found.again_error < 0.25


def test_a_difference_that_no_rounding_makes_is_found(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(engine, "stacked", lambda updates, memory=None: stacked(updates, memory) * 1.05)
    with pytest.raises(AdapterError, match=r"evaluated again, the fusion differs by 5.0e-02 of its norm"):
        command(pair, tmp_path / "out", "ties")


def test_factors_written_otherwise_move_no_entry_across_a_threshold():
    """Opposite to 2⁻²²: what is elected is by chance in float32, where other factors round otherwise."""
    one = toys.lora(1, rank=3, shapes={"up": (12, 12)})
    update = one.updates["up"]
    parents = [one, Adapter({"up": LowRank(-update.b * (1 - 2.0**-22), update.a, update.scaling)}, one.metadata)]
    info = fuse(parents, "ties", density=1.0).metadata.fused
    assert verification._gauge(info, parents) < 1e-6


def test_a_cut_that_is_not_the_best_is_found(tmp_path, pair, monkeypatch):
    def worst(matrix, rank):
        u, s, vh = whole_svd(matrix)
        return u[:, -rank:], s[-rank:], vh[-rank:], float(s[:-rank].norm() / s.norm())

    monkeypatch.setattr(updates, "truncate_matrix", worst)
    with pytest.raises(AdapterError, match=r"the truncation to rank 2 loses .* is possible"):
        command(pair, tmp_path / "out", "ties", rank="2")


def test_large_models_are_evaluated_in_part(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(reevaluation, "_NUMBERS", 2 * 66)
    for method, sites in (("ties_per_tensor", 1), ("ties", 0)):
        fused = fuse(pair, method)
        fused.save(tmp_path / method)
        found = verify(fused, tmp_path / method, [SourceAdapter(load(folder)) for folder in pair])
        assert found.again == sites
        assert (found.again_error is None) == (sites == 0)


def test_inputs_that_peft_reads_otherwise_are_found(tmp_path, pair):
    adapter = fuse(pair, weights=1.0)
    adapter.save(tmp_path / "out")
    parents = [SourceAdapter(load(folder), folder) for folder in pair]
    assert verify(adapter, tmp_path / "out", parents).identity < 1e-6
    swapped = [SourceAdapter(parents[0].adapter, pair[0]), SourceAdapter(parents[1].adapter, pair[0])]
    with pytest.raises(AdapterError):
        verify(adapter, tmp_path / "out", swapped)


def test_a_method_that_sees_the_factors_is_found(pair, monkeypatch, tmp_path):
    """Dense entries that depend on the gauge, as merging A and B apart would make them."""
    seen = lambda updates, memory: torch.stack([(u.b @ u.a.abs()) * u.scaling for u in updates])  # noqa: E731
    monkeypatch.setattr(engine, "stacked", seen)
    parents = [load(folder) for folder in pair]
    info = fuse(parents, "ties_per_tensor").metadata.fused
    with pytest.raises(AdapterError, match="depends on how the updates are factored"):
        verification._gauge(info, parents)


def test_the_bound_of_random_vectors():
    """A difference of rank one, the worst case, is hardly ever measured as less than a tenth."""
    generator = torch.Generator().manual_seed(0)
    d = torch.zeros(6, 5, dtype=torch.float64)
    d[2, 3] = 1.0
    tries = [d @ torch.randn(5, 16, dtype=torch.float64, generator=generator) for _ in range(2000)]
    measured = [float(y.norm()) / math.sqrt(16) for y in tries]
    assert min(measured) > 0.1
    for delta in (0.3, 0.5):
        bound = (delta * math.exp(1 - delta)) ** 8
        assert sum(t * t <= delta for t in measured) / len(measured) <= bound
